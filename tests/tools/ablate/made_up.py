"""Results as the command would write them, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.tools.ablate.matrices import content

METHODS = {
    "dense": {"method": "dense"},
    "static": {"method": "static"},
    "SET naive": {"method": "set"},
    "SMET": {"method": "smet"},
    "SMET, short": {"method": "smet", "warmup_steps": 2},
    "SMET, protected": {"method": "smet", "protect_rounds": 1},
    "SMET, e = 1": {"method": "smet", "lr_exponent": 1.0},
}
ROLES = {
    "dense": "dense", "static": "static", "naive": "SET naive", "remedied": "SMET", "short_warmup": "SMET, short",
    "protected": "SMET, protected", "exponents": {"0.5": "SMET", "1": "SMET, e = 1"},
    "branches": {"naive": "naive", "remedied": "remedied", "floor": "prune only"},
}  # fmt: skip


def run(method: str, seed: int, loss: float, density: float = 0.25, lr: float = 0.01, rise: float = 0.0) -> dict:
    """One finished run whose held-out loss rises by ``rise`` within 12 steps of its one update."""
    dense = method == "dense"
    return {
        "name": f"{method}-{density}-{lr}-{seed}", "kind": "run", "method": method, "size": "tiny", "seed": seed,
        "density": 1.0 if dense else density, "lr": lr, "revision": "0123456789abcdef", "steps": 20,
        "train_loss": loss, "validation_loss": loss, "loss_curve": [[10, loss + 1], [20, loss]],
        "bytes_at_rest": {"weights": 100, "active_weights": 25, "measured": 2_000_000, "planned_if_dense": 8_000_000},
        "updates": [{"step": 6, "losses": {"before": 5.0, "after": 5.01, "12": 5.0 + rise}}],
        "changes": [] if dense else [{"age": 1, "regrown": 0.9, "survivors": 0.3}],
        "topology_updates": 0 if dense else 3, "recycled": None if dense else 0.25, "cpu_seconds": 30.0,
        "wall_seconds": 40.0, "ranks": 1, "device": "cpu",
    }  # fmt: skip


def branches(seed: int, excess: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """One cell with as many branches as each variant has values: its excess loss 30 steps behind the update."""
    count = len(next(iter(excess.values())))
    return {
        "name": f"branches-{seed}", "kind": "branches", "method": "SMET", "density": 0.25, "size": "tiny",
        "seed": seed, "lr": 0.01, "revision": "0123456789abcdef", "steps": 20, "train_loss": 4.0,
        "validation_loss": 4.0, "loss_curve": [], "bytes_at_rest": None, "cpu_seconds": 60.0, "wall_seconds": 70.0,
        "ranks": 1, "device": "cpu",
        "branches": [
            {
                "step": 100 * (1 + place), "fraction": 0.2, "lr": 0.01,
                "losses": {"no update": {"0": 4.0, "30": 3.9}}
                | {name: {"0": 4.0, "30": 3.9 + values[place]} for name, values in excess.items()},
            }
            for place in range(count)
        ],
    }  # fmt: skip


TEXT: dict[str, Any] = {part: [{"tokens": 1000, "sha256": part.ljust(64, "0")}] for part in ("train", "validation")}


def results(cells: list[dict[str, Any]], missing: Sequence[str] = ()) -> dict[str, Any]:
    """``results.json`` with these cells."""
    return {
        "format": 2, "command": "python -m tools.ablate", "file": "tiny.yaml", "written": "2026-01-01",
        "machine": {"processor": "a processor", "cores": 2, "torch": "2.13", "deepspeed": "0.19"},
        "revisions": ["0123456789abcdef"], "texts": [TEXT], "cpu_seconds": sum(cell["cpu_seconds"] for cell in cells),
        "wall_seconds": 100.0, "matrix": content("corpus", methods=METHODS, roles=ROLES), "missing": list(missing),
        "cells": cells,
    }  # fmt: skip
