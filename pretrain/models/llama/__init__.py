"""LLaMA (Touvron et al., arXiv 2302.13971), with the names of Hugging Face's ``LlamaForCausalLM``."""

from __future__ import annotations

from pretrain.models.family import Family
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.inventory import saved, shape, weights

FAMILY = Family(
    package=__name__,
    title="LLaMA",
    config=LlamaConfig,
    shape=shape,
    weights=weights,
    saved=saved,
    function=("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"),
)
