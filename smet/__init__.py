"""SMET: sparse, memory-efficient training of any torch model with dynamic topology.

Source: Xiao et al., "Memory-Efficient LLM Training with Dynamic Sparsity", arXiv 2606.00888.
"""

from smet.ages import Remedies
from smet.bank import MaskBank
from smet.config import PRESETS, SmetConfig
from smet.controller import TopologyController, UpdateReport
from smet.convert import densify, parameter_groups, sparsify
from smet.errors import ConfigError, UserError
from smet.linear import SparseLinear, sparse_layers
from smet.optimizer import SmetAdamW
from smet.store import LocalStore

__all__ = [
    "PRESETS",
    "ConfigError",
    "LocalStore",
    "MaskBank",
    "Remedies",
    "SmetAdamW",
    "SmetConfig",
    "SparseLinear",
    "TopologyController",
    "UpdateReport",
    "UserError",
    "densify",
    "parameter_groups",
    "sparse_layers",
    "sparsify",
]
