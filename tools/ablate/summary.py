"""What a finished cell leaves behind, as plain data of a few kilobytes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from pretrain.checkpoint.manifest import git_revision
from pretrain.records import Rows, read_rows
from pretrain.run_folder.reader import METRICS, TOPOLOGY, RunReader

CURVE_POINTS = 40
DIGITS = 5
TAIL = 20
"""Steps whose mean is the final training loss."""


def summarize(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The result of the cell in ``folder``: labels, losses, and what was measured on the way."""
    run = RunReader(folder / "run")
    summary = {**spec["labels"], "revision": git_revision(), **_losses(run)}
    if spec["kind"] == "branches":
        return {**summary, "branches": [_rounded(row) for row in read_rows(folder / "branches.jsonl")]}
    rows = read_rows(folder / "probe.jsonl")
    return {**summary, "updates": _updates(rows), "changes": _changes(rows), **_topology(run)}


def _losses(run: RunReader) -> dict[str, Any]:
    metrics = run.rows(METRICS)
    return {
        "steps": metrics[-1]["step"],
        "train_loss": _number(_mean([row["loss"] for row in metrics[-TAIL:]])),
        "validation_loss": _number(next((r["validation_loss"] for r in metrics[::-1] if "validation_loss" in r), None)),
        "loss_curve": _curve(metrics),
        "bytes_at_rest": _bytes(run),
    }


def _curve(metrics: Rows) -> list[list[float | None]]:
    """[step, mean training loss of the steps up to it], in at most ``CURVE_POINTS`` pieces."""
    size = math.ceil(len(metrics) / CURVE_POINTS)
    pieces = [metrics[start : start + size] for start in range(0, len(metrics), size)]
    return [[piece[-1]["step"], _number(_mean([row["loss"] for row in piece]))] for piece in pieces]


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
            update["losses"][str(row["offset"])] = _number(row["loss"])
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
            "regrown": _number(_mean([r["regrown"] / r["rate"] for r in some if r["regrown"] is not None])),
            "survivors": _number(_mean([r["survivors"] / r["rate"] for r in some if r["survivors"] is not None])),
        }
        for age, some in sorted(ages.items())
    ]


def _topology(run: RunReader) -> dict[str, Any]:
    """Number of updates, and the share of weights just grown that the next update pruned."""
    rows = run.rows(TOPOLOGY)
    shares = [
        after["recycled"] / before["grown"] for before, after in zip(rows, rows[1:], strict=False) if before["grown"]
    ]
    return {"topology_updates": len(rows), "recycled": _number(_mean(shares))}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _number(value: float | None) -> float | None:
    """Rounded; JSON has no infinity, so what is not finite becomes null."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS + 1}g}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    losses = {name: {step: _number(loss) for step, loss in some.items()} for name, some in row["losses"].items()}
    return {**row, "losses": losses, "lr": _number(row["lr"]), "fraction": _number(row["fraction"])}
