"""The run folder: settings, metrics and checkpoints of one run, written by its main rank."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.config import RunConfig
from pretrain.config.load import config_from_dict
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import CheckpointError, ConfigError

MAY_CHANGE = {
    "train.steps", "train.micro_batch_size", "train.activation_checkpointing", "train.output_dir", "train.device",
    "train.stop_at", "train.consistency_interval", "sparsity.mask_residency", "sparsity.weight_residency",
    "data.tokenizer",
}  # fmt: skip
"""Settings that a resumed run may change: they do not change what is being trained."""
MAY_CHANGE_SECTIONS = ("parallel", "evaluation", "checkpoint", "logging", "guard", "operation", "deepspeed")


SMALLEST_BYTES = 1 << 16
"""Free space without which not even settings and the first lines of metrics can be written."""


def write_atomically(path: Path, text: str) -> None:
    """Publish ``text`` at ``path``: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with outside.open_own(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every setting that differs and may not."""
    found = []
    for key in sorted({*old, *new}):
        dotted = prefix + key
        if dotted in MAY_CHANGE or dotted in MAY_CHANGE_SECTIONS or old.get(key) == new.get(key):
            continue
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            found += differences(old[key], new[key], f"{dotted}.")
        else:
            found.append(f"{dotted}: {old.get(key)!r} -> {new.get(key)!r}")
    return found


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version with the defaults of keys that are new since, which say what it did."""
    try:
        return config_from_dict(settings).to_dict()
    except ConfigError:
        return settings


class RunFolder:
    """What one run writes.

    ``config.yaml``, ``deepspeed.json``, ``metrics.jsonl``, ``topology.jsonl``, ``events.jsonl``, ``memory.json``,
    ``checkpoints/``, ``heartbeat/``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._error: OSError | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are published."""
        return self.path / "checkpoints"

    def require_same_run(self, config: RunConfig) -> None:
        """Check that this folder is new, or holds the run that ``config`` describes.

        Raises:
            CheckpointError: it holds another run or anything else, or ``checkpoint.resume`` is ``never`` and it
                holds a run.
        """
        saved = self.path / "config.yaml"
        if not saved.exists():
            self._require_unused()
            return
        if config.checkpoint.resume == "never":
            raise CheckpointError(
                f"output folder {self.path} already holds a run and checkpoint.resume is never; choose another "
                "train.output_dir, or set checkpoint.resume=auto to continue it"
            )
        try:
            old = read_yaml(saved)
        except ConfigError as error:
            raise CheckpointError(f"{error}; choose another train.output_dir, or mend that file") from None
        changed = differences(_completed(old), config.to_dict())
        if changed:
            raise CheckpointError(
                f"output folder {self.path} already holds another run ({'; '.join(changed[:6])}"
                f"{'; ...' if len(changed) > 6 else ''}); choose another train.output_dir, or set these back to "
                "continue it"
            )

    def _require_unused(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"output folder {self.path} is a file; choose another train.output_dir")
        # A run killed in its first moment leaves these, which are in nobody's way.
        harmless = ("heartbeat", "events.jsonl")
        if self.path.is_dir() and not all(p.name.endswith(".tmp") or p.name in harmless for p in self.path.iterdir()):
            raise CheckpointError(
                f"output folder {self.path} is not empty and holds no run; choose another train.output_dir"
            )

    def begin(self, config: RunConfig, deepspeed: dict[str, Any], step: int) -> None:
        """Write the settings; drop metrics of steps after ``step``, which will be done again.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._require_own_folders()
            config.save(self.path / "config.yaml")  # first: it is what makes this folder one of a run
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
        for path in (self.checkpoints, self.path / "heartbeat"):
            if path.is_symlink():
                raise CheckpointError(
                    f"{path} is a symbolic link to {os.readlink(path)}, expected a folder: a run writes and deletes in "
                    "its own folder only; let train.output_dir be where there is room"
                )

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after ``step``, which will be done again."""
        for name in ("metrics.jsonl", "topology.jsonl"):
            self._keep_until(self.path / name, step)

    @staticmethod
    def _keep_until(path: Path, step: int) -> None:
        if not path.exists():
            return
        kept = []
        with outside.reading(path) as file:
            lines = file.read().decode("utf-8", "replace").splitlines()
        for line in lines:
            try:
                if outside.parse_json(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line cut off by a crash
        write_atomically(path, "".join(line + "\n" for line in kept))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one JSON line to the file ``name``.

        A failure is kept for ``require_written``: the rank that writes must not leave the others alone in a step.
        """
        try:
            with outside.open_own(self.path / name, "a") as file:
                file.write(json.dumps(record) + "\n")
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
        self.append("events.jsonl", {"time": time.time(), "kind": kind, "step": step, **finite})

    def write_json(self, name: str, content: Any) -> None:
        """Publish ``content`` as the file ``name``."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")
