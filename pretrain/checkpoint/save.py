"""Saving: stage a copy, write it in the background, publish it once every rank has written."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.vectors import Vectors, staged
from pretrain.errors import CheckpointError
from pretrain.layout import Layout

T = TypeVar("T")


class WriteFailure(Exception):
    """Writing failed on ``rank``; every rank raises the same one."""

    def __init__(self, rank: int, cause: BaseException):
        super().__init__(rank, cause)
        self.rank, self.cause = rank, cause


class Saver:
    """Writes checkpoints of one run, one at a time.

    Args:
        root: the run's ``checkpoints`` folder.
        layout: ranks that save together, in a thread, on ``layout.background``.
        keep_last, keep_every: retention, see ``folder.retire``.
    """

    def __init__(self, root: Path, layout: Layout, keep_last: int, keep_every: int):
        self.root, self.layout = root, layout
        self.keep_last, self.keep_every = keep_last, keep_every
        self._group = layout.background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds_blocked = 0.0
        """Time the last ``save`` kept the training thread."""

    def save(self, step: int, vectors: Vectors, state: dict[str, Any], wait: bool) -> None:
        """Save ``vectors`` and ``state`` as the checkpoint after ``step``. Collective.

        Raises:
            CheckpointError: too little free space, or an earlier save failed.
        """
        begin = time.perf_counter()
        self.finish()
        self._require_space(vectors)
        copies = staged(vectors)
        self._thread = threading.Thread(target=self._run, args=(step, copies, state), name="checkpoint-writer")
        self._thread.start()
        if wait:
            self.finish()
        self.seconds_blocked = time.perf_counter() - begin

    def finish(self) -> None:
        """Wait for the save in progress, if any. Collective.

        Raises:
            CheckpointError: it failed on any rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._raise_together(self._error)

    def poll(self) -> None:
        """Notice a finished or failed save without waiting. Collective; call it at every step."""
        if self._thread is None:
            return
        running = self.layout.any(self._thread.is_alive())
        if not running:
            self.finish()

    def _raise_together(self, error: BaseException | None) -> None:
        self._error = None
        if error is not None and not isinstance(error, WriteFailure):
            error = WriteFailure(self.layout.rank, error)
        failures = [other for other in self.layout.gather_objects(error) if other is not None]
        if not failures:
            return
        rank, cause = failures[0].rank, failures[0].cause
        if not isinstance(cause, OSError):
            raise RuntimeError(f"the checkpoint writer of rank {rank} failed") from cause
        raise CheckpointError(
            f"saving a checkpoint to {self.root} failed on rank {rank} ({type(cause).__name__}: {cause}); earlier "
            "checkpoints are whole; free space or mend the disk, then start the same command again"
        ) from cause

    def _require_space(self, vectors: Vectors) -> None:
        own = sum(v.local.numel() * v.local.element_size() for v in vectors.values())
        needed = sum(self.layout.gather_objects(own))
        free = min(self.layout.gather_objects(folders.free_bytes(self.root)))
        if free < needed * 1.05 + (1 << 20):
            raise CheckpointError(
                f"a checkpoint needs {needed / 1e6:.1f} MB, {self.root} has {free / 1e6:.1f} MB free; free space or "
                "lower checkpoint.keep_last, then start the same command again"
            )

    def _run(self, step: int, vectors: Vectors, state: dict[str, Any]) -> None:
        try:
            self._write(step, vectors, state)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, vectors: Vectors, state: dict[str, Any]) -> None:
        temporary = folders.temporary_folder(self.root, step)
        self._together(lambda: folders.make_empty(temporary) if self.layout.is_main else None)
        try:
            dcp.save(dict(vectors), storage_writer=dcp.FileSystemWriter(temporary), process_group=self._group)
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            raise WriteFailure(rank, cause) from None
        parts = self._together(lambda: self._describe_own(temporary, state))
        files = {name: entry for part in parts for name, entry in part.items()}
        self._together(lambda: self._publish(temporary, step, files) if self.layout.is_main else None)

    def _together(self, action: Callable[[], T]) -> list[T]:
        """What ``action`` returns on each rank; if it raises on one, every rank raises. Collective.

        Without this, a rank whose disk is full would leave the others waiting for it.
        """
        result, error = None, None
        try:
            result = action()
        except Exception as caught:
            error = caught
        gathered: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(gathered, (result, error), group=self._group)
        for rank, (_, cause) in enumerate(gathered):
            if cause is not None:
                raise WriteFailure(rank, cause)
        return [value for value, _ in gathered]

    def _describe_own(self, temporary: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Size and checksum of the files this rank wrote; the main rank's include the common ones."""
        own = sorted(temporary.glob(f"__{self.layout.rank}_*"))
        if self.layout.is_main:
            folders.write_synced(temporary / folders.STATE, json.dumps(state))
            own += [temporary / ".metadata", temporary / folders.STATE]
        return {path.name: folders.describe(path) for path in own}

    def _publish(self, temporary: Path, step: int, files: dict[str, Any]) -> None:
        folders.publish(temporary, folders.step_folder(self.root, step), self._manifest(step, files))
        folders.retire(self.root, self.keep_last, self.keep_every)

    def _manifest(self, step: int, files: dict[str, Any]) -> dict[str, Any]:
        manifest = {
            "format": folders.FORMAT,
            "version": folders.VERSION,
            "step": step,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "layout": {"world_size": self.layout.world_size, "dp": self.layout.dp_size},
            "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
            "git": git_revision(),
            "files": files,
        }
        return {**manifest, "self": folders.manifest_digest(manifest)}


def git_revision() -> str | None:
    """Revision of the checkout this program runs from, or None outside one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
