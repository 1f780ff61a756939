"""Logical vectors: what a checkpoint is made of.

Every stored tensor is one 1-D vector with a global name. A rank holds a contiguous fragment of it, of
any length, and torch.distributed.checkpoint reads any cut into any other.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from pretrain.checkpoint.folder import read_manifest
from pretrain.checkpoint.index import read_index
from pretrain.errors import CheckpointError


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


class _TensorsOnly(DefaultLoadPlanner):
    """torch's planner, which would unpickle without limits what an index calls bytes."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuse."""
        raise CheckpointError(f"{read_item.dest_index.fqn} is no tensor; only tensors are loaded")


class VectorReader(dcp.FileSystemReader):
    """Reads vectors of the verified checkpoint at ``path``, with one look at its index. Nothing in it is ever run.

    Raises:
        CheckpointError: it has no index, or one that is refused (see ``checkpoint.index``).
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._index = read_index(path, read_manifest(path)["files"])

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """torch's hook: the index of all vectors."""
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """torch's hook; what it reads from files are tensors alone (``weights_only``).

        Raises:
            CheckpointError: something else is in its place; names vector and file.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")  # others are refused anyway
                return super().read_data(plan, planner)
        except Exception as error:
            if len(plan.items) > 1:  # one by one, to tell which it is
                for item in plan.items:
                    self.read_data(LoadPlan([item]), planner)
            if isinstance(error, (CheckpointError, MemoryError)) or getattr(error, "errno", None) or not plan.items:
                raise  # of the machine, not of what the file holds
            item = plan.items[0]
            file = Path(self.path) / self.storage_data[item.storage_index].relative_path
            raise CheckpointError(
                f"{file} is refused: {item.dest_index.fqn} is no plain tensor of the size that the index says; nothing "
                "of it was run"
            ) from None

    def entries(self) -> dict[str, TensorStorageMetadata]:
        """What the index says of each stored vector."""
        return dict(self._index.state_dict_metadata)  # type: ignore[arg-type]

    def fill(self, name: str, local: Tensor, start: int, total: int) -> None:
        """Read elements from ``start`` on of the vector ``name``, which has ``total``, into ``local``.

        Raises:
            CheckpointError: they cannot be read.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
            self.load({name: LogicalVector(local, start, total)}, no_dist=True)

    def load(self, vectors: Vectors, **how: Any) -> None:
        """Fill the live fragments of ``vectors``; ``how`` is given to torch's ``load``. Collective, if that is.

        Raises:
            CheckpointError: one of them cannot be read on some rank.
        """
        try:
            dcp.load(dict(vectors), storage_reader=self, planner=_TensorsOnly(), **how)
        except CheckpointException as error:
            _, (cause, _) = min(error.failures.items())
            if isinstance(cause, OSError):
                cause = CheckpointError(f"checkpoint {self.path} cannot be read ({cause.strerror}: {cause.filename})")
            raise cause from None  # of any other class: a bug, since the index was checked before
