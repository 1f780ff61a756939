"""Saving: stage a copy, write it in the background, publish it once every rank has written."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from pretrain import outside
from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.manifest import make_manifest
from pretrain.checkpoint.vectors import Vectors, staged
from pretrain.errors import CheckpointError
from pretrain.files import write_synced
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
        permutation: digest of the permutations of features, for the manifest; None without any.
    """

    def __init__(self, root: Path, layout: Layout, keep_last: int, keep_every: int, permutation: str | None = None):
        self.root, self.layout, self.permutation = root, layout, permutation
        self.keep_last, self.keep_every = keep_last, keep_every
        self._group = layout.background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_clean = False
        self._behind = False
        self.seconds_blocked = 0.0
        """Time the last ``save`` kept the training thread."""

    def save(
        self, step: int, vectors: Vectors, state: dict[str, Any], wait: bool, products: dict[str, Any] | None = None
    ) -> None:
        """Save ``vectors`` and ``state`` as the checkpoint after ``step``. Collective.

        Args:
            products: who multiplies, for the manifest.

        Raises:
            CheckpointError: too little free space, or an earlier save failed.
        """
        begin = time.perf_counter()
        self.finish()
        self._clean()
        self._require_space(vectors)
        # Training goes on changing vectors and state while the thread writes.
        arguments = (step, staged(vectors), json.dumps(state), {**self._facts(state), "products": products})
        self._behind = not wait
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint-writer")
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
        if not _of_the_disk(cause):
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

    def _clean(self) -> None:
        """Before the first save: what a killed process left may be what fills the disk."""
        if not self._is_clean:
            self.layout.agree(self._delete_leftovers)
            self._is_clean = True

    def _delete_leftovers(self) -> None:
        try:
            if self.layout.is_main:
                folders.clean(self.root)
        except OSError as error:
            raise CheckpointError(f"remains of an unfinished save cannot be deleted: {error}; delete them") from error

    def _facts(self, state: dict[str, Any]) -> dict[str, Any]:
        """What the manifest tells of the run."""
        sizes = {"world_size": self.layout.world_size, "data": self.layout.dp_size}
        sizes |= {"tensor": self.layout.tensor_size, "pipeline": self.layout.stages}
        config = state.get("config", {})
        return {"layout": {**sizes, "zero_stage": config.get("parallel", {}).get("zero_stage")}, "config": config}

    def _run(self, step: int, vectors: Vectors, state: str, facts: dict[str, Any]) -> None:
        if self._behind:
            _step_back()
        try:
            self._write(step, vectors, state, facts)
        except BaseException as error:
            self._error = error
            if self.layout.is_main:  # half a checkpoint is of no use, and takes space
                with contextlib.suppress(OSError):
                    outside.delete(folders.temporary_folder(self.root, step))

    def _write(self, step: int, vectors: Vectors, state: str, facts: dict[str, Any]) -> None:
        temporary = folders.temporary_folder(self.root, step)
        self._together(lambda: folders.make_empty(temporary) if self.layout.is_main else None)
        try:
            dcp.save(dict(vectors), storage_writer=dcp.FileSystemWriter(temporary), process_group=self._group)
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            raise WriteFailure(rank, cause) from None
        parts = self._together(lambda: self._describe_own(temporary, state))
        files = {name: entry for part in parts for name, entry in part.items()}
        self._together(lambda: self._publish(temporary, step, facts, files) if self.layout.is_main else None)

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

    def _describe_own(self, temporary: Path, state: str) -> dict[str, Any]:
        """Size and checksum of the files this rank wrote; the main rank's include the common ones."""
        own = sorted(temporary.glob(f"__{self.layout.rank}_*"))
        if self.layout.is_main:
            write_synced(temporary / folders.STATE, state)
            own += [temporary / ".metadata", temporary / folders.STATE]
        return {path.name: folders.describe(path) for path in own}

    def _publish(self, temporary: Path, step: int, facts: dict[str, Any], files: dict[str, Any]) -> None:
        final = folders.step_folder(self.root, step)
        manifest = make_manifest(step, facts["layout"], facts["config"], files, facts["products"], self.permutation)
        folders.publish(temporary, final, manifest)
        folders.retire(final, self.keep_last, self.keep_every)


def _of_the_disk(cause: BaseException) -> bool:
    """Whether writing failed for want of space or a broken disk. torch's own writer says so in a RuntimeError."""
    return isinstance(cause, OSError) or (isinstance(cause, RuntimeError) and "inline_container" in str(cause))


def _step_back() -> None:
    """Let this thread have only what training leaves of the processors (Linux knows a priority per thread)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
