"""A recorded batch whose loss is stored with a checkpoint and must come out again after loading it."""

from __future__ import annotations

import math
from typing import Any

import torch

from pretrain.engine import Engine, fill_up
from pretrain.errors import CheckpointError

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the loss that another layout's rounding may make."""


def probe_loss(engine: Engine, tokens: list[int], micro_batch_size: int) -> float:
    """Loss of one sequence, computed alike on every data-parallel rank. Collective."""
    rows = micro_batch_size if engine.fixed_rows else 1
    return engine.loss(fill_up(torch.tensor([tokens]), rows)) * rows


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
