"""What a run writes into its folder, by its main rank, and who runs it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.changes import Change, changes, completed, known
from pretrain.checkpoint.folder import published, step_of
from pretrain.command import again
from pretrain.config import RunConfig
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import write_atomically
from pretrain.paths import resolved
from pretrain.records import append, keep_until
from pretrain.run_folder.reader import (
    CHECKPOINTS,
    EVENTS,
    HEARTBEAT,
    LOGS,
    MEMORY,
    METRICS,
    SAMPLES,
    SETTINGS,
    TOPOLOGY,
    WRITERS,
    RunReader,
)

HARMLESS = {HEARTBEAT, EVENTS, LOGS, WRITERS, "tensorboard", "wandb", "trackio", "run.png"}
"""What is in nobody's way: a run killed in its first moment leaves some."""
OWN = {SETTINGS, "deepspeed.json", METRICS, TOPOLOGY, MEMORY, SAMPLES, CHECKPOINTS} | HARMLESS
"""Names of what a run and its tools write."""


SMALLEST_BYTES = 1 << 16
"""Free space without which not even settings and the first lines of metrics can be written."""


def _unsaved(config: RunConfig, step: int) -> list[str]:
    """That a run which goes on after ``step`` saves nothing before its end, where it is so."""
    interval, last = config.checkpoint.interval, config.train.stop_at or config.train.steps
    if step >= last or (interval and (step // interval + 1) * interval < last):
        return []
    return [
        f"checkpoint.interval is {interval}: nothing is saved before step {last}, unless a signal or a time limit ends"
        " the run first; a crash loses what was done, and spikes cannot be rolled back"
    ]


def require_writable(output_dir: str) -> None:
    """Refuse a place that cannot be written, before a model is built for minutes; nothing is written.

    Raises:
        CheckpointError: a read-only or full disk, or a folder without permission.
    """
    place = Path(output_dir).absolute()
    try:
        while not place.exists():
            place = place.parent
        kept = os.statvfs(place)
    except OSError as error:
        raise CheckpointError(
            f"train.output_dir {output_dir} cannot be made ({error.strerror}: {error.filename}); choose another"
        ) from None
    if place == Path(output_dir).absolute() and not place.is_dir():
        return  # named by whoever opens the run folder
    why = ""
    if not place.is_dir():
        why = "it is a file"
    elif not os.access(place, os.W_OK | os.X_OK):
        why = "the disk is read-only" if kept.f_flag & os.ST_RDONLY else "no permission"
    elif kept.f_bavail * kept.f_frsize < SMALLEST_BYTES:
        why = f"only {kept.f_bavail * kept.f_frsize:,} bytes are free"
    if why:
        raise CheckpointError(f"train.output_dir {output_dir} cannot be written in {place} ({why}); choose another")


class RunFolder:
    """What one run writes.

    ``config.yaml``, ``deepspeed.json``, ``metrics.jsonl``, ``topology.jsonl``, ``events.jsonl``, ``memory.json``,
    ``samples.jsonl``, ``checkpoints/``, ``heartbeat/``, ``logs/``; ``writers.json`` and a folder for each of
    ``logging.writers``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.listeners: list[Callable[[dict[str, Any]], object]] = []
        """Told of each event, from whichever thread notes it."""
        self._error: OSError | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are published."""
        return self.path / CHECKPOINTS

    def require_same_run(self, config: RunConfig) -> None:
        """Check that this folder is new, or holds the run that ``config`` describes.

        Raises:
            CheckpointError: it holds another run or anything else, or ``checkpoint.resume`` is ``never`` and it
                holds a run.
        """
        saved = self.path / SETTINGS
        if not saved.exists():
            self._require_unused()
            return
        if config.checkpoint.resume == "never":
            raise CheckpointError(
                f"output folder {self.path} already holds a run and checkpoint.resume is never; choose another "
                "train.output_dir, or set checkpoint.resume=auto to continue it"
            )
        family = config.model.family
        before = completed(self.settings(), family)
        changed = [change for change in changes(before, config.to_dict()) if not change.allowed]
        if changed:
            more = "; ..." if len(changed) > 6 else ""
            raise CheckpointError(
                f"output folder {self.path} already holds another run ({'; '.join(map(str, changed[:6]))}{more}); "
                f"{self._ways_on(changed, family)}"
            )

    def settings(self) -> dict[str, Any]:
        """The settings of the run that this folder holds; empty where it holds none.

        Raises:
            CheckpointError: they cannot be read.
        """
        saved = self.path / SETTINGS
        try:
            return read_yaml(saved) if saved.exists() else {}
        except ConfigError as error:
            raise CheckpointError(f"{error}; choose another train.output_dir, or mend that file") from None

    def _ways_on(self, changed: list[Change], family: str) -> str:
        if len(changed) > 12 or known(self.settings(), family) is None:
            return "choose another train.output_dir, or set these back to continue it"
        newest = next(reversed(published(self.checkpoints)), None)
        branch = ""
        if newest is not None and all(change.fits for change in changed):
            command = again(f"checkpoint.resume={newest}", "train.output_dir=NEW")
            branch = f"to branch off with these settings: {command}; "
        return (
            f"to go on with it: {again(*(change.back for change in changed))}; {branch}another train.output_dir alone "
            "begins at step 1"
        )

    def resume_from(self, given: str) -> str:
        """``given``, a value of ``checkpoint.resume``; ``auto`` where this folder began from that checkpoint before.

        The command that started a branch goes on with it, as any other command does.
        """
        if given in ("auto", "never") or not (self.path / SETTINGS).exists():
            return given
        before = (self.settings().get("checkpoint") or {}).get("resume")
        own = published(self.checkpoints)
        same = isinstance(before, str) and os.path.realpath(before) == os.path.realpath(given)
        return "auto" if same and own and step_of(own[-1]) > step_of(Path(given)) else given

    def _require_unused(self) -> None:
        """Files of others may lie here, such as logs; what this run would write may not."""
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"output folder {self.path} is a file; choose another train.output_dir")
        place, home = resolved(self.path), resolved(os.path.expanduser("~"))
        if place in (home, Path(place.anchor), Path(__file__).resolve().parents[1]):
            raise CheckpointError(f"train.output_dir is {self.path}, expected a folder of its own, such as runs/a")
        found = sorted(name for name in self._names() if name in OWN - HARMLESS)
        if found == [CHECKPOINTS] and not any(self.checkpoints.iterdir()):
            found = []
        if found:
            raise CheckpointError(
                f"output folder {self.path} has {' and '.join(found)} but no config.yaml, so whose they are is not "
                "known; put its config.yaml back to go on (each checkpoint's state.json has the settings), or choose "
                "another train.output_dir"
            )

    def _names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def remarks(self, config: RunConfig, step: int) -> list[str]:
        """What a run that begins or goes on after ``step`` finds here and should say; before ``begin``."""
        unsaved = _unsaved(config, step)
        if step:
            return unsaved
        found = [f"begins at step 1 of {config.train.steps} in {self.path}"]
        others = sorted(name for name in self._names() if name not in OWN and not name.endswith(".tmp"))
        if others and not (self.path / SETTINGS).exists():
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            found.append(f"{self.path} holds files of others, which stay as they are: {', '.join(others[:3])}{more}")
        if reached := RunReader(self.path).reached().step:
            found.append(f"an earlier start came to step {reached} there, and left no checkpoint: it is done again")
        return found + unsaved

    def begin(self, config: RunConfig, deepspeed: dict[str, Any], step: int) -> None:
        """Write the settings; drop metrics of steps after ``step``, which will be done again.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._require_own_folders()
            config.save(self.path / SETTINGS)  # first: it is what makes this folder one of a run
            self.checkpoints.mkdir(exist_ok=True)
            write_atomically(self.path / "deepspeed.json", json.dumps(deepspeed, indent=2) + "\n")
            self.forget_after(step)
        except OSError as error:
            raise CheckpointError(
                f"output folder {self.path} cannot be written ({error.strerror}: {error.filename}); choose another "
                "train.output_dir"
            ) from error

    def _require_own_folders(self) -> None:
        """A link in place of a folder of ours would have us write, and delete, in somebody else's."""
        for path in (self.checkpoints, self.path / HEARTBEAT, self.path / LOGS):
            if path.is_symlink():
                raise CheckpointError(
                    f"{path} is a symbolic link to {os.readlink(path)}, expected a folder: a run writes and deletes in "
                    "its own folder only; let train.output_dir be where there is room"
                )

    def forget_after(self, step: int) -> None:
        """Drop metrics and samples of steps after ``step``, which will be done again."""
        for name in (METRICS, TOPOLOGY, SAMPLES):
            keep_until(self.path / name, step)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one JSON line to the file ``name``.

        A failure is kept for ``require_written``: the rank that writes must not leave the others alone in a step.
        """
        try:
            append(self.path / name, record)
        except OSError as error:
            self._error = error

    def require_written(self) -> None:
        """Raise what kept ``append`` from writing.

        Raises:
            CheckpointError: the disk is full, or the folder gone.
        """
        if self._error is not None:
            raise CheckpointError(
                f"{self.path} cannot be written ({self._error.strerror}); free space or mend the disk, then start the "
                "same command again"
            )

    def append_event(self, kind: str, step: int, **more: Any) -> None:
        """Add a line to ``events.jsonl``: what happened to the run beside training. Infinities become null."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in more.items()}
        event = {"time": time.time(), "kind": kind, "step": step, **finite}
        self.append(EVENTS, event)
        for tell in self.listeners:
            tell(event)

    def write_json(self, name: str, content: Any) -> None:
        """Publish ``content`` as the file ``name``."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")


def note(folder: Path, event: dict[str, Any]) -> None:
    """Add a line to a run's events from outside; a folder that cannot be written is no reason to end a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        append(folder / EVENTS, event)
    except OSError as error:
        print(f"warning: {folder / EVENTS} cannot be written: {error.strerror}", flush=True)
