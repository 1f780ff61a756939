"""Tags of a run's figures: grouped, so that a page of charts has an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smet.update import UpdateReport

TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "epochs": "train/epochs",
    "skipped": "train/skipped",
    "steps_skipped": "train/steps_skipped",
    "validation_loss": "validation/loss",
    "validation_perplexity": "validation/perplexity",
    "density": "topology/density",
    "update_loss_jump": "topology/spike",
    "update_loss_deviations": "topology/spike_deviations",
    "step_seconds": "system/step_seconds",
    "tokens_per_second": "system/tokens_per_second",
    "tflops": "system/tflops",
    "hardware_tflops": "system/hardware_tflops",
    "mfu": "system/mfu",
    "hfu": "system/hfu",
    "memory_peak": "system/memory_peak",
    "memory_peak_fullest": "system/memory_peak_fullest",
    "checkpoint_seconds": "system/checkpoint_seconds",
}
"""By the key of ``metrics.jsonl``."""
GROUPS = {"tokens/": "train/", "epochs/": "train/", "bytes_sent": "system/", "validation_": "validation/"}
"""Keys that begin so belong to a group under their own name."""
NO_FIGURE = ("step", "time")
OTHER = "own/"
"""What callbacks of one's own add."""


def tagged(record: Mapping[str, Any], density: float) -> dict[str, float]:
    """The figures of a step's record by tag; of a topology update too, where the step had one.

    Args:
        density: of the sparse layers now.
    """
    found = {
        tag_of(key): float(value)
        for key, value in record.items()
        if isinstance(value, (int, float)) and key not in NO_FIGURE
    }
    report = record.get("topology")
    return {**found, **of_update(report, density)} if isinstance(report, UpdateReport) else found


def tag_of(key: str) -> str:
    """The tag of a key of ``metrics.jsonl``."""
    group = next((group for begin, group in GROUPS.items() if key.startswith(begin)), OTHER)
    return TAGS.get(key, group + key)


def of_update(report: UpdateReport, density: float) -> dict[str, float]:
    """The figures of a topology update by tag. ``recycled`` is the share of pruned tiles that the update before had
    grown."""
    return {
        "topology/update": report.update,
        "topology/prune_fraction": report.fraction,
        "topology/moved": report.grown,
        "topology/pruned": report.pruned,
        "topology/unmoved": report.unmoved,
        "topology/uneven": report.uneven,
        "topology/recycled": report.recycled / max(1, report.pruned),
        "topology/seconds": report.seconds,
        "topology/density": density,
    }


def in_words(event: Mapping[str, Any]) -> str:
    """A line of ``events.jsonl`` as text."""
    plain = {key: value for key, value in event.items() if key not in ("time", "kind", "step")}
    return f"step {event['step']}: {event['kind']}" + (
        f" ({', '.join(f'{key} {value}' for key, value in plain.items())})" if plain else ""
    )
