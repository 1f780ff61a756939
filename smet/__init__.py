"""SMET: sparse, memory-efficient training of any torch model with dynamic topology.

Names are imported when they are first used, so that programs which need no tensors (``smet.errors``, the
corpus tools) do not pay for torch in each of their processes.

Source: Xiao et al., "Memory-Efficient LLM Training with Dynamic Sparsity", arXiv 2606.00888.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smet.average import ModelAverage
    from smet.bank import MaskBank
    from smet.config import PRESETS, SmetConfig
    from smet.controller import TopologyController
    from smet.convert import densify, sparsify
    from smet.errors import ConfigError, UserError
    from smet.groups import parameter_groups
    from smet.linear import SparseLinear, sparse_layers
    from smet.optim.adamw import SmetAdamW
    from smet.optim.ages import Remedies
    from smet.optim.front import AdamW
    from smet.report import SparsifyReport
    from smet.run import Run, attach
    from smet.store import LocalStore
    from smet.update import UpdateReport
else:
    _HOMES = {
        "AdamW": "optim.front",
        "PRESETS": "config",
        "ConfigError": "errors",
        "LocalStore": "store",
        "MaskBank": "bank",
        "ModelAverage": "average",
        "Remedies": "optim.ages",
        "Run": "run",
        "SmetAdamW": "optim.adamw",
        "SmetConfig": "config",
        "SparseLinear": "linear",
        "SparsifyReport": "report",
        "TopologyController": "controller",
        "UpdateReport": "update",
        "UserError": "errors",
        "attach": "run",
        "densify": "convert",
        "parameter_groups": "groups",
        "sparse_layers": "linear",
        "sparsify": "convert",
    }

    # Hidden from type checkers: to them it would mean that the package has every name.
    def __getattr__(name: str) -> object:
        """Import the module that ``name`` lives in (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'smet' has no attribute '{name}'")
        from importlib import import_module

        value = getattr(import_module(f"smet.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, imported yet or not."""
        return sorted({*globals(), *__all__})


__all__ = [
    "PRESETS",
    "AdamW",
    "ConfigError",
    "LocalStore",
    "MaskBank",
    "ModelAverage",
    "Remedies",
    "Run",
    "SmetAdamW",
    "SmetConfig",
    "SparseLinear",
    "SparsifyReport",
    "TopologyController",
    "UpdateReport",
    "UserError",
    "attach",
    "densify",
    "parameter_groups",
    "sparse_layers",
    "sparsify",
]
