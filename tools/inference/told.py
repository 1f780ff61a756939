"""What a run itself told of the validation loss at a checkpoint's step."""

from __future__ import annotations

from typing import Any

from pretrain.run_folder.reader import METRICS, TOPOLOGY, RunReader

from .model import Loaded


def told_by_run(loaded: Loaded) -> dict[str, Any] | None:
    """``validation_loss`` in the run's metrics at the step of its checkpoint, and whether the topology was updated
    behind that evaluation, so that the checkpoint holds other weights; None where it told none."""
    if loaded.checkpoint is None:
        return None
    step, run = loaded.checkpoint.step, RunReader(loaded.place.parent.parent)
    try:
        rows = [row for row in run.rows(METRICS, ["step"]) if row["step"] == step and "validation_loss" in row]
    except OSError:
        return None
    if not rows or rows[-1]["validation_loss"] is None:
        return None
    updated = any(row.get("step") == step for row in run.tail(TOPOLOGY, 1 << 26))
    return {"validation_loss": rows[-1]["validation_loss"], "updated_after": updated}
