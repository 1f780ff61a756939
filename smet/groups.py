"""Optimizer groups of a model with sparse layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from smet.config import SmetConfig
from smet.distribution import density_factor
from smet.dtensors import let_go
from smet.linear import sparse_layers
from smet.spec import group_name


def parameter_groups(model: nn.Module, config: SmetConfig, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups for ``SmetAdamW``.

    Sparse values form one group per density, with ``lr_factor = density_factor(density, lr_exponent)``,
    whose names start with ``sparse``. Where density falls, the factor follows it (``densities``: first and last).
    Dense matrices form one group; vectors (norms, biases) another without weight decay.
    Frozen parameters are left out.
    """
    let_go(model)
    sparse: dict[tuple[float, float], list[nn.Parameter]] = {}
    owned = set()
    for layer in sparse_layers(model).values():
        owned.add(id(layer.values))
        if layer.values.requires_grad:
            sparse.setdefault((layer.configured_density, layer.last_density), []).append(layer.values)
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
    groups: list[dict[str, Any]] = [
        {"name": "dense", "params": [p for p in rest if p.dim() > 1], "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    for (density, final), params in sorted(sparse.items()):
        groups.append(
            {
                "name": group_name(density, final),
                "params": params,
                "weight_decay": weight_decay,
                "lr_factor": density_factor(density, config.lr_exponent),
                "aged": config.dynamic and final < 1.0,
                **({"densities": (density, final)} if final < density else {}),
            }
        )
    return [group for group in groups if group["params"]]
