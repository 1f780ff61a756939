"""Reading a run folder from outside, while the run goes on: nothing is written, no lock is taken."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import outside

TAIL_BYTES = 1 << 18
_CHECKPOINT = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class Reached:
    """How far a run has come. Steps; 0 = none."""

    checkpoint: int
    """Newest published checkpoint."""
    step: int
    """Last step in metrics.jsonl."""

    def beyond(self, other: Reached) -> bool:
        """Whether this is forward progress over ``other``."""
        return self.checkpoint > other.checkpoint or self.step > other.step

    def best(self, other: Reached) -> Reached:
        """The furthest of both, each figure by itself: metrics go back when a run goes on from a checkpoint."""
        return Reached(max(self.checkpoint, other.checkpoint), max(self.step, other.step))


def reached(folder: Path) -> Reached:
    """How far the run in ``folder`` has come."""
    checkpoints = published(folder)
    metrics = tail(folder / "metrics.jsonl")
    return Reached(step_of(checkpoints[-1]) if checkpoints else 0, int(metrics[-1].get("step", 0)) if metrics else 0)


def published(folder: Path) -> list[Path]:
    """Published checkpoints of a run, oldest first."""
    root = folder / "checkpoints"
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _CHECKPOINT.match(path.name) and (path / "manifest.json").is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def tail(path: Path, size: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The last whole JSON objects of a file of lines, at most ``size`` bytes of them; none if there is no file."""
    try:
        with outside.reading(path) as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    if length > size:
        lines = lines[1:]  # cut off in front
    return objects(lines)


def objects(lines: list[bytes]) -> list[dict[str, Any]]:
    """The JSON objects among ``lines``; one that is just being written is left out, and one with text for numbers."""
    found = []
    for line in lines:
        try:
            record = outside.parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and all(_is_number(record[key]) for key in _NUMBERS if key in record):
            found.append(record)
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first."""
    return tail(folder / "events.jsonl", 1 << 26)


def heartbeats(folder: Path) -> dict[int, dict[str, Any]]:
    """rank -> what it wrote about itself last."""
    found = {}
    for path in sorted((folder / "heartbeat").glob("rank-*.json")):
        try:
            record = outside.read_json(path, outside.MEGABYTE)
        except (OSError, ValueError):
            continue  # just being replaced, or planted
        if isinstance(record, dict) and _is_heartbeat(record):
            found[record["rank"]] = record
    return found


_NUMBERS = ("step", "step_seconds", "tokens_per_second", "loss", "tokens", "time", "update", "grown", "pruned")
"""Of a record in a file of lines, what is computed with; null where a run diverged."""


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 62)


def _is_heartbeat(record: dict[str, Any]) -> bool:
    """Whether what stands in a heartbeat file is of the kinds that a rank writes."""
    numbers = all(_is_number(record.get(key)) for key in ("rank", "pid", "step", "alive", "moved"))
    texts = all(isinstance(record.get(key, ""), str) and len(record.get(key, "")) < 300 for key in ("host", "phase"))
    whole = isinstance(record.get("rank"), int) and isinstance(record.get("step", 0), int)
    return numbers and texts and whole and record["rank"] >= 0


def note(folder: Path, event: dict[str, Any]) -> None:
    """Add a line to the run's events; a folder that cannot be written is no reason to end a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with outside.open_own(folder / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
    except OSError as error:
        print(f"warning: {folder / 'events.jsonl'} cannot be written: {error.strerror}", flush=True)
