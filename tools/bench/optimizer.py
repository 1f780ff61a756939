"""The optimizer step alone, over one rank's partition of the sparse layers, in all ranks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smet import SmetAdamW

from .clock import interleaved
from .figures import Figure
from .session import Session
from .spread import median, ratios

ROUNDS = 40
UPDATES = 20
"""Topology updates whose ages the weights have."""


def measure(session: Session) -> dict[str, list[float]]:
    """Seconds per step of each optimizer, round by round. Collective."""
    ranks, device = session.layout.dp_size, session.layout.device
    layers = session.smet.layers.values()
    stored = sum(layer.values.numel() if layer.values.numel() > 1 else 0 for layer in layers)
    stored = stored or sum(layer.active * layer.grid.tile_size for layer in layers)
    total = sum(layer.grid.rows * layer.grid.cols for layer in layers)
    actions: dict[str, Callable[[], Any]] = {"SMET": _smet(_partition(-(-stored // ranks), device))}
    for name in session.sides:
        if not name.startswith("SMET"):
            actions[name] = _dense(name, _partition(-(-total // ranks), device))
    for action in actions.values():
        action()
    rounds = 3 if session.options.quick else ROUNDS
    return interleaved(session.layout, actions, rounds, 1, lambda: None).wall


def _partition(elements: int, device: torch.device) -> nn.Parameter:
    flat = nn.Parameter(torch.randn(elements, device=device))
    flat.grad = torch.randn(elements, device=device)
    return flat


def _smet(flat: nn.Parameter) -> Callable[[], Any]:
    optimizer = SmetAdamW([{"params": [flat], "aged": True}], lr=1e-3)
    births: Tensor = optimizer.ensure_state(flat, aged=True)["birth"]
    for update in range(UPDATES):
        optimizer.steps_done += 100
        code, recode = optimizer.ages.open(optimizer.steps_done)
        for old, new in recode.items():
            births[births == old] = new
        births[torch.rand(births.shape, device=births.device) < 0.3 / (update + 1)] = code
    return optimizer.step


def _dense(name: str, flat: nn.Parameter) -> Callable[[], Any]:
    if name == "DeepSpeedCPUAdam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        step: Callable[[], Any] = DeepSpeedCPUAdam([flat], lr=1e-3, adamw_mode=True).step
        return step
    return torch.optim.AdamW([flat], lr=1e-3, fused=True).step


def figures(seconds: dict[str, list[float]]) -> list[Figure]:
    """From what ``measure`` returned."""
    dense = min((sum(values), name) for name, values in seconds.items() if name != "SMET")[1]
    return [median("optimizer_step", ratios(seconds["SMET"], seconds[dense]), f"against {dense}, fp32 gradients")]
