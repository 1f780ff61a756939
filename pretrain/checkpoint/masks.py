"""Masks of a checkpoint, read before the model is built.

A tensor-parallel shard holds as many weights as its part of the mask has active blocks. Topology updates
may have moved them between the parts, so a run that goes on builds its shards around the saved masks.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from pretrain.checkpoint.vectors import LogicalVector
from smet.mask import BlockGrid


class _Reader(dcp.FileSystemReader):
    """Parses the checkpoint's table of contents once, not for every mask."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._known: Metadata | None = None

    def read_metadata(self, *args: object, **options: object) -> Metadata:
        if self._known is None:
            self._known = super().read_metadata()
        return self._known


class SavedMasks:
    """The packed masks of the verified checkpoint at ``path``, shard by shard."""

    def __init__(self, path: Path):
        self._reader = _Reader(path)
        entries = self._reader.read_metadata().state_dict_metadata
        self._lengths = {
            name: entry.size.numel() for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)
        }

    def shard(self, name: str, grid: BlockGrid, shard: int, shards: int, active: int) -> Tensor | None:
        """Part ``shard`` of ``shards`` of the packed mask of layer ``name``; None where there is no such mask.

        None too if its layer has another size or another number of active blocks than ``active``: then the
        checkpoint is of another model, which is reported when its vectors are read.

        Args:
            grid: blocks of one shard.
            active: active blocks of the whole layer.
        """
        key = f"{name}.mask"
        expected = {key: grid.mask_bytes * shards, f"{name}.values": active * grid.block_size}
        if any(self._lengths.get(vector) != length for vector, length in expected.items()):
            return None
        bits = torch.zeros(grid.mask_bytes, dtype=torch.uint8)
        wanted = LogicalVector(bits, shard * grid.mask_bytes, expected[key])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that other ranks are not asked, which is meant
            dcp.load({key: wanted}, storage_reader=self._reader, no_dist=True)
        return bits
