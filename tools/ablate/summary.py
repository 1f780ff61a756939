"""What a finished cell leaves behind, as plain data of a few kilobytes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from pretrain.records import Rows, read_rows
from pretrain.run_folder.reader import METRICS, TOPOLOGY, RunReader

CURVE_POINTS = 40
DIGITS = 5
TAIL = 20
"""Steps whose mean is the final training loss."""


def summarize(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """What came of the cell in ``folder``: losses, and what was measured on the way."""
    run = RunReader(folder / "run")
    losses = _losses(run)
    if spec["kind"] == "branches":
        return {**losses, "branches": [_rounded(row) for row in read_rows(folder / "branches.jsonl")]}
    rows = read_rows(folder / "probe.jsonl")
    return {**losses, "updates": _updates(rows), "changes": _changes(rows), **topology(run.rows(TOPOLOGY))}


def _losses(run: RunReader) -> dict[str, Any]:
    metrics = run.rows(METRICS)
    last = next((row["validation_loss"] for row in metrics[::-1] if "validation_loss" in row), None)
    return {**training_losses(metrics), "validation_loss": number(last), "bytes_at_rest": _bytes(run)}


def training_losses(metrics: Rows) -> dict[str, Any]:
    """Of rows with ``step`` and ``loss``: how many steps, the final loss, and the curve."""
    return {
        "steps": metrics[-1]["step"],
        "train_loss": number(_mean([row["loss"] for row in metrics[-TAIL:]])),
        "loss_curve": _curve(metrics),
    }


def _curve(metrics: Rows) -> list[list[float | None]]:
    """[step, mean training loss of the steps up to it], in at most ``CURVE_POINTS`` pieces."""
    size = math.ceil(len(metrics) / CURVE_POINTS)
    pieces = [metrics[start : start + size] for start in range(0, len(metrics), size)]
    return [[piece[-1]["step"], number(_mean([row["loss"] for row in piece]))] for piece in pieces]


def _bytes(run: RunReader) -> dict[str, Any] | None:
    memory = run.memory()
    if not memory:
        return None
    layers = memory["sparse_layers"]
    return {key: layers[key] for key in ("weights", "active_weights", "measured", "planned_if_dense")}


def _updates(rows: Rows) -> list[dict[str, Any]]:
    """Per update: the step, and the held-out loss at every measured moment around it."""
    updates: dict[int, dict[str, Any]] = {}
    for row in rows:
        if "offset" in row:
            update = updates.setdefault(row["update"], {"step": row["update"], "losses": {}})
            update["losses"][str(row["offset"])] = number(row["loss"])
    return [updates[step] for step in sorted(updates)]


def _changes(rows: Rows) -> list[dict[str, Any]]:
    """Per age: root mean square change of regrown and of all other weights in one step, in units of their rate."""
    ages: dict[int, Rows] = {}
    for row in rows:
        if "age" in row and row["rate"]:
            ages.setdefault(row["age"], []).append(row)
    return [
        {
            "age": age,
            "regrown": number(_mean([r["regrown"] / r["rate"] for r in some if r["regrown"] is not None])),
            "survivors": number(_mean([r["survivors"] / r["rate"] for r in some if r["survivors"] is not None])),
        }
        for age, some in sorted(ages.items())
    ]


def topology(rows: Rows) -> dict[str, Any]:
    """Number of updates, and the share of weights just grown that the next update pruned."""
    shares = [
        after["recycled"] / before["grown"] for before, after in zip(rows, rows[1:], strict=False) if before["grown"]
    ]
    return {"topology_updates": len(rows), "recycled": number(_mean(shares))}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def number(value: float | None) -> float | None:
    """Rounded; JSON has no infinity, so what is not finite becomes null."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS + 1}g}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    losses = {name: {step: number(loss) for step, loss in some.items()} for name, some in row["losses"].items()}
    return {**row, "losses": losses, "lr": number(row["lr"]), "fraction": number(row["fraction"])}
