"""Saving: stage a copy, write it in the background, publish it once every rank has written."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.vectors import Vectors, staged
from pretrain.errors import CheckpointError
from pretrain.layout import Layout


class Saver:
    """Writes checkpoints of one run, one at a time.

    Args:
        root: the run's ``checkpoints`` folder.
        layout: ranks that save together; needs a group of its own, since it works in a thread.
        keep_last, keep_every: retention, see ``folder.retire``.
    """

    def __init__(self, root: Path, layout: Layout, keep_last: int, keep_every: int):
        self.root, self.layout = root, layout
        self.keep_last, self.keep_every = keep_last, keep_every
        self._group = dist.new_group(list(range(layout.world_size)), backend="gloo")
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
        texts = self.layout.gather_objects(None if error is None else f"{type(error).__name__}: {error}")
        failed = [(rank, text) for rank, text in enumerate(texts) if text]
        if failed:
            rank, text = failed[0]
            raise CheckpointError(
                f"saving a checkpoint to {self.root} failed on rank {rank} ({_one_line(text)}); earlier checkpoints "
                "are whole; free space or mend the disk, then start the same command again"
            ) from error

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
        if self.layout.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier(group=self._group)
        dcp.save(dict(vectors), storage_writer=dcp.FileSystemWriter(temporary), process_group=self._group)
        mine, error = {}, None
        try:
            if self.layout.is_main:
                folders.write_synced(temporary / folders.STATE, json.dumps(state))
            mine = self._describe_own(temporary)
        except OSError as caught:
            error = caught
        gathered: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(gathered, (mine, None if error is None else str(error)), group=self._group)
        failures = [text for _, text in gathered if text]
        if failures:
            raise OSError(failures[0])
        if self.layout.is_main:
            files = {name: entry for part, _ in gathered for name, entry in part.items()}
            final = folders.step_folder(self.root, step)
            folders.publish(temporary, final, self._manifest(step, files))
            folders.retire(self.root, self.keep_last, self.keep_every)
        dist.barrier(group=self._group)

    def _describe_own(self, temporary: Path) -> dict[str, Any]:
        """Size and checksum of the files this rank wrote; the main rank's include the common ones."""
        own = sorted(temporary.glob(f"__{self.layout.rank}_*"))
        if self.layout.is_main:
            own += [temporary / ".metadata", temporary / folders.STATE]
        return {path.name: folders.describe(path) for path in own}

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


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else text
