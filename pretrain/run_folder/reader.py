"""Reading a run folder from outside, while the run goes on: nothing is written, no lock is taken, no torch.

The one reader for all who look at runs: ``launch status``, the supervisor, plots, the ablation, and whatever watches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.checkpoint.folder import MANIFEST, published, step_of
from pretrain.records import Follower, Rows, is_number, read_document, read_rows

SETTINGS, METRICS, TOPOLOGY = "config.yaml", "metrics.jsonl", "topology.jsonl"
EVENTS, MEMORY, HEARTBEAT = "events.jsonl", "memory.json", "heartbeat"
SAMPLES = "samples.jsonl"
"""What the model makes of ``evaluation.prompts``: step, prompt, text."""
CHECKPOINTS = "checkpoints"
WRITERS, LOGS = "writers.json", "logs"

NUMBERS = (
    "step", "step_seconds", "tokens_per_second", "loss", "tokens", "epochs", "tflops", "mfu", "memory_peak",
    "memory_peak_fullest", "time", "update", "grown", "pruned",
)  # fmt: skip
"""Of a record in a file of lines, what is computed with; null where a run diverged."""
TAIL_BYTES = 1 << 18


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


class RunReader:
    """What a run left in its folder, as far as it can be used: others may have written there too."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def rows(self, name: str, needed: Sequence[str] = ()) -> Rows:
        """All usable records of the file of lines ``name``; a warning on stderr says how many others there are.

        Raises:
            OSError: the file is there, and cannot be read.
        """
        return read_rows(self.path / name, needed, NUMBERS)

    def tail(self, name: str, size: int = TAIL_BYTES) -> Rows:
        """The last usable records of the file of lines ``name``, at most ``size`` bytes of them; none if it cannot be
        read."""
        try:
            with outside.reading(self.path / name) as file:
                length = file.seek(0, 2)
                file.seek(max(0, length - size))
                lines = file.read(size).split(b"\n")
        except OSError:
            return []
        lines = lines[1:] if length > size else lines  # cut off in front
        usable = Follower(self.path / name, numbers=NUMBERS).usable
        return [row for row in map(usable, lines) if row is not None]

    def follow(self, name: str, needed: Sequence[str] = ()) -> Follower:
        """For those who watch: each ``poll`` gives what was added to the file of lines ``name`` since the last."""
        return Follower(self.path / name, needed, NUMBERS)

    def events(self) -> Rows:
        """All events, oldest first."""
        return self.tail(EVENTS, 1 << 26)

    def memory(self) -> dict[str, Any]:
        """The report on memory; empty if there is none yet.

        Raises:
            DataError: the file holds something else.
        """
        file = self.path / MEMORY
        return read_document(file, f"remove it to see {self.path} without its memory") if file.is_file() else {}

    def checkpoints(self) -> list[Path]:
        """Published checkpoints, oldest first, without those that lost their manifest."""
        return [path for path in published(self.path / CHECKPOINTS) if (path / MANIFEST).is_file()]

    def saved(self) -> str:
        """Where the newest checkpoint is, for the last line of a run."""
        found = self.checkpoints()
        return f"saved in {found[-1]}" if found else "nothing is saved yet"

    def reached(self) -> Reached:
        """How far the run has come."""
        checkpoints, metrics = self.checkpoints(), self.tail(METRICS)
        step = metrics[-1].get("step") if metrics else None
        return Reached(step_of(checkpoints[-1]) if checkpoints else 0, int(step or 0))

    def heartbeats(self) -> dict[int, dict[str, Any]]:
        """rank -> what it wrote about itself last."""
        found = {}
        for path in sorted((self.path / HEARTBEAT).glob("rank-*.json")):
            try:
                record = outside.read_json(path, outside.MEGABYTE)
            except (OSError, ValueError):
                continue  # just being replaced, or planted
            if isinstance(record, dict) and _is_heartbeat(record):
                found[record["rank"]] = record
        return found


def _is_heartbeat(record: dict[str, Any]) -> bool:
    """Whether what stands in a heartbeat file is of the kinds that a rank writes."""
    numbers = all(is_number(record.get(key)) for key in ("rank", "pid", "step", "alive", "moved"))
    texts = all(isinstance(record.get(key, ""), str) and len(record.get(key, "")) < 300 for key in ("host", "phase"))
    whole = isinstance(record.get("rank"), int) and isinstance(record.get("step", 0), int)
    return numbers and texts and whole and record["rank"] >= 0
