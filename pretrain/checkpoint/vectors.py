"""Logical vectors: what a checkpoint is made of.

Every stored tensor is one 1-D vector with a global name. A rank holds a contiguous fragment of it, of
any length, and torch.distributed.checkpoint reads any cut into any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
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
