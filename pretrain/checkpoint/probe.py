"""A recorded batch whose loss is stored with a checkpoint and must come out again after loading it."""

from __future__ import annotations

import math
from typing import Any

import torch

from pretrain.errors import CheckpointError
from pretrain.layout import Layout

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the loss that another layout's rounding may make."""


@torch.no_grad()
def probe_loss(engine: Any, tokens: list[int], layout: Layout) -> float:
    """Loss of one sequence, the same on every rank. Collective where weights or masks are sharded."""
    engine.eval()
    try:
        return float(engine(torch.tensor([tokens], device=layout.device)))
    finally:
        engine.train()


def require_same_loss(stored: float, found: float, precision: str, path: Any) -> None:
    """Refuse to train if a loaded model does not compute what the saved one did.

    Raises:
        CheckpointError: the losses differ by more than rounding.
    """
    if math.isclose(stored, found, rel_tol=TOLERANCE[precision]) or (math.isnan(stored) and math.isnan(found)):
        return
    raise CheckpointError(
        f"after loading {path} the recorded batch has loss {found:.6f}, expected {stored:.6f} as at save time: the "
        "model or the software differs; use the settings and versions in its manifest.json"
    )
