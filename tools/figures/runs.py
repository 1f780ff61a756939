"""Runs as pictures show them: what their folders hold, and what can be said of it in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.yaml_text import read_yaml
from pretrain.errors import ConfigError, DataError
from pretrain.outside import printable
from pretrain.paths import resolved
from pretrain.records import Rows, read_rows
from pretrain.run_folder.reader import MEMORY, METRICS, SETTINGS, TOPOLOGY, RunReader

NUMBERS = ("step", "loss", "tokens_per_second")
NUMBERS_IF_THERE = (
    "lr", "grad_norm", "validation_loss", "validation_perplexity", "tokens", "mfu", "memory_peak_fullest",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    name: str
    method: str
    """Of ``sparsity.method``; empty where it is not known."""
    rows: Rows
    """Of metrics.jsonl, at least one."""
    updates: Rows
    memory: dict[str, Any]
    """The report on memory, empty without one."""

    @property
    def steps(self) -> list[int]:
        """Of its records, rising."""
        return [row["step"] for row in self.rows]

    def series(self, key: str) -> tuple[list[int], list[float | None]]:
        """Steps and values of the records that have ``key``; None where the run diverged."""
        found = [row for row in self.rows if key in row]
        return [row["step"] for row in found], [row[key] for row in found]

    def last(self, key: str) -> float | None:
        """The newest value of ``key`` that is a number."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    @property
    def densities(self) -> list[tuple[int, float, float]]:
        """Step, lowest and highest density of a layer behind each topology update."""
        found = [(update["step"], list((update.get("density") or {}).values())) for update in self.updates]
        return [(step, min(values), max(values)) for step, values in found if values]

    @property
    def at_rest(self) -> tuple[float, float] | None:
        """Bytes at rest of the sparse layers per rank, measured, and those of the same layers under dense AdamW."""
        layers = self.memory.get("sparse_layers") or {}
        dense = layers.get("planned_if_dense")
        return (layers["measured"], dense) if dense else None


def read_runs(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """Every run, under a name of its own: ``names``, or as much of its path as tells it from the others.

    Raises:
        DataError: a folder holds no run, or one without a finished step; a run or a name is given twice.
    """
    places = [resolved(folder) for folder in folders]
    if names and len(names) != len(folders):
        raise DataError(f"--name is given {len(names)} times, expected once for each of the {len(folders)} runs")
    for at, place in enumerate(places):
        if place in places[:at]:
            raise DataError(f"{folders[at]} is given twice, expected every run once")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"--name {name} is given twice, expected another name for every run")
    return [_read(folder, name) for folder, name in zip(folders, names or _names(places), strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others."""
    found = []
    for place in places:
        others = [other.parts for other in places if other != place]
        known = range(1, len(place.parts) + 1)
        parts = next((n for n in known if all(other[-n:] != place.parts[-n:] for other in others)), len(place.parts))
        found.append("/".join(place.parts[-parts:]))
    return found


def _read(folder: Path, name: str) -> Run:
    rows = read_rows(folder / METRICS, NUMBERS, NUMBERS_IF_THERE)
    if not rows:
        raise DataError(f"{folder} holds no finished step in {METRICS}, expected a run folder (train.output_dir)")
    updates = read_rows(folder / TOPOLOGY, ("step", "grown"))
    return Run(
        folder, printable(name), _method(folder), _in_order(rows), _in_order(updates), RunReader(folder).memory()
    )


def _in_order(rows: Rows) -> Rows:
    """One record per step, rising: the later one of a step that was done again."""
    return sorted({row["step"]: row for row in rows}.values(), key=lambda row: int(row["step"]))


def _method(folder: Path) -> str:
    """It decides a colour only, so that settings which cannot be read are no reason to draw nothing."""
    try:
        method = (read_yaml(folder / SETTINGS).get("sparsity") or {}).get("method")
    except (ConfigError, OSError, AttributeError):
        return ""
    return method if isinstance(method, str) else ""


def summarize(run: Run) -> dict[str, Any]:
    """The figures a reader wants first, as measured."""
    rows = run.rows
    validated = [row for row in rows if "validation_loss" in row]
    steady = sorted(row["tokens_per_second"] for row in rows[len(rows) // 10 :])
    summary: dict[str, Any] = {
        "run": str(run.folder),
        "steps": rows[-1]["step"],
        "loss": rows[-1]["loss"],
        "tokens_per_second_median": steady[len(steady) // 2],
        "topology_updates": len(run.updates),
        "skipped_steps": sum(bool(row.get("skipped")) for row in rows),
    }
    if validated:
        summary["validation_loss"] = validated[-1]["validation_loss"]
        summary["validation_perplexity"] = validated[-1]["validation_perplexity"]
    if run.memory:
        layers = run.memory["sparse_layers"]
        summary["sparse_layer_bytes_per_rank"] = layers["measured"]
        summary["same_layers_dense_bytes_per_rank"] = layers["planned_if_dense"]
        summary["memory_ratio"] = layers["ratio_to_dense"]
    return summary


def missing_memory(run: Run) -> str:
    """Why there is nothing to say of a run's memory at rest."""
    return f"no {MEMORY}" if not run.memory else "no sparse layers"
