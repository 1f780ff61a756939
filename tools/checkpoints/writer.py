"""Publishing a checkpoint from one process, as a run's ``Saver`` does: same files, same manifest, same order."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from tqdm import tqdm

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.manifest import make_manifest
from pretrain.checkpoint.vectors import LogicalVector
from pretrain.errors import CheckpointError
from pretrain.files import write_synced


class LazyVector(LogicalVector):
    """A whole vector that is made when the writer comes to it, so that only one is in memory."""

    load: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, length: int, dtype: torch.dtype, load: Callable[[], Tensor]) -> LazyVector:
        vector = torch.Tensor._make_wrapper_subclass(cls, (length,), dtype=dtype)
        vector.load = load
        return vector

    def __init__(self, length: int, dtype: torch.dtype, load: Callable[[], Tensor]):
        """Args are ``__new__``'s; ``load()`` returns the vector, 1-D."""

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([0]), self.shape)

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        data = TensorWriteData(chunk=self._chunk(), properties=TensorProperties(dtype=self.dtype), size=self.shape)
        index = MetadataIndex(fqn, torch.Size([0]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        made = self.load()
        if made.shape != self.shape or made.dtype != self.dtype:
            raise ValueError(f"vector has {made.numel()} x {made.dtype}, expected {self.numel()} x {self.dtype}")
        return made

    @property
    def size_bytes(self) -> int:
        """Bytes of the vector."""
        return self.numel() * self.dtype.itemsize


Vectors = dict[str, LazyVector]


def zeros(length: int, dtype: torch.dtype = torch.float32) -> LazyVector:
    """A vector of zeros."""
    return LazyVector(length, dtype, lambda: torch.zeros(length, dtype=dtype))


def require_space(root: Path, vectors: Vectors) -> None:
    """Check that ``vectors`` fit on the disk that holds ``root`` (an existing folder).

    Raises:
        CheckpointError: they do not.
    """
    needed, free = sum(vector.size_bytes for vector in vectors.values()), folders.free_bytes(root)
    if free < needed * 1.05 + (1 << 20):
        raise CheckpointError(
            f"the checkpoint needs {needed / 1e6:.1f} MB, {root} has {free / 1e6:.1f} MB free; free space or choose "
            "another OUT"
        )


def write_checkpoint(root: Path, vectors: Vectors, state: dict[str, Any], permutation: str | None = None) -> Path:
    """Publish ``vectors`` and ``state`` as the checkpoint after ``state["step"]`` below ``root``.

    Args:
        permutation: digest of the permutations of features, for the manifest; None without any.

    Returns:
        Its folder.
    """
    step = state["step"]
    temporary, final = folders.temporary_folder(root, step), folders.step_folder(root, step)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    total = sum(vector.size_bytes for vector in vectors.values())
    bar = tqdm(total=total, desc="write", unit="B", unit_scale=True, disable=None, file=sys.stderr)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
        memory = _OneAtATime(bar)
        watched = {name: memory.watch(vector) for name, vector in vectors.items()}
        # No copy-ahead: with it, torch reorders the vectors on machines with a GPU, and a layer's parts lie together.
        writer = dcp.FileSystemWriter(temporary, per_thread_copy_ahead=0)
        try:
            dcp.save(dict(watched), storage_writer=writer, no_dist=True)
        except CheckpointException as error:  # a full disk, or a weight that cannot be taken: torch wraps either
            (cause, _), *_ = error.failures.values()
            raise cause from None
    write_synced(temporary / folders.STATE, json.dumps(state))
    files = {path.name: folders.describe(path) for path in sorted(temporary.iterdir())}
    layout = {"world_size": 1, "data": 1, "tensor": 1, "pipeline": 1, "zero_stage": 0}
    manifest = make_manifest(step, layout, state.get("config", {}), files, permutation=permutation)
    folders.publish(temporary, final, manifest)
    return final


class _OneAtATime:
    """Lets only the vector that is being written have memory.

    torch keeps every tensor that it has written until the file is complete, so their storage is taken away.
    """

    def __init__(self, bar: Any):
        self.bar = bar
        self._written: Tensor | None = None

    def watch(self, vector: LazyVector) -> LazyVector:
        """The same vector; when it is asked for, the one before is freed."""

        def load() -> Tensor:
            if self._written is not None:
                self._written.untyped_storage().resize_(0)
            self._written = vector.load().clone()  # a storage of its own, whatever the vector was made of
            self.bar.update(vector.size_bytes)
            return self._written

        return LazyVector(vector.numel(), vector.dtype, load)
