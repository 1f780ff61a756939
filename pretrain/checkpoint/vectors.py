"""Logical vectors: what a checkpoint is made of.

Every stored tensor is one 1-D vector with a global name. A rank holds a contiguous fragment of it, of
any length, and torch.distributed.checkpoint reads any cut into any other.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class LogicalVector(torch.Tensor):
    """A vector of ``total`` elements of which this rank holds ``local``, from ``start`` on.

    ``copy`` marks a fragment that another rank holds too, and saves.

    Only the checkpoint planner ever sees one; it has no arithmetic.
    """

    local: Tensor
    start: int
    copy: bool

    @staticmethod
    def __new__(cls, local: Tensor, start: int, total: int, copy: bool = False) -> LogicalVector:
        vector = torch.Tensor._make_wrapper_subclass(cls, (total,), dtype=local.dtype, device=local.device)
        vector.local, vector.start, vector.copy = local, start, copy
        return vector

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """The planner detaches tensors; nothing else is defined."""
        if func == torch.ops.aten.detach.default:
            return LogicalVector(args[0].local.detach(), args[0].start, args[0].numel(), args[0].copy)
        raise TypeError(f"a LogicalVector has no {func}")

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.local.numel()]))

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        """torch's hook for saving: this rank's fragment, if it has one."""
        if self.local.numel() == 0:
            return []
        data = TensorWriteData(
            chunk=self._chunk(), properties=TensorProperties.create_from_tensor(self.local), size=self.shape
        )
        index = MetadataIndex(fqn, torch.Size([self.start]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """torch's hook for loading: which part this rank wants."""
        return [self._chunk()] if self.local.numel() else []

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        """torch's hook for both: where the fragment is."""
        return self.local


Vectors = dict[str, LogicalVector]


def staged(vectors: Vectors) -> Vectors:
    """What this rank saves: copies on the CPU, which training no longer changes."""
    return {
        name: LogicalVector(vector.local.detach().to("cpu", copy=True), vector.start, vector.numel())
        for name, vector in vectors.items()
        if not vector.copy
    }


class VectorReader(dcp.FileSystemReader):
    """Reads vectors of the checkpoint at ``path`` one by one, without other ranks and with one look at its index."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """torch's hook: the index of all vectors, parsed once."""
        if self._index is None:
            self._index = super().read_metadata(*args, **kwargs)
        return self._index

    def entries(self) -> dict[str, TensorStorageMetadata]:
        """What the index says of each stored vector."""
        stored = self.read_metadata().state_dict_metadata
        return {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}

    def fill(self, name: str, local: Tensor, start: int, total: int) -> None:
        """Read elements from ``start`` on of the vector ``name``, which has ``total``, into ``local``."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
            dcp.load({name: LogicalVector(local, start, total)}, storage_reader=self, no_dist=True)
