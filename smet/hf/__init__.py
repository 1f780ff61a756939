"""Sparse models in transformers: to import this is enough for ``from_pretrained`` and ``save_pretrained``."""

from smet.hf.callback import SmetCallback
from smet.hf.config import SparseConfig, adopt
from smet.hf.lora import beside_sparse
from smet.hf.plain import dense, load_dense
from smet.hf.quantizer import SparseQuantizer

__all__ = ["SmetCallback", "SparseConfig", "SparseQuantizer", "adopt", "beside_sparse", "dense", "load_dense"]
