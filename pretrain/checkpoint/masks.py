"""Masks of a checkpoint, read before the model is built.

A tensor-parallel shard holds as many weights as its part of the mask has active tiles. Topology updates
may have moved them between the parts, so a run that goes on builds its shards around the saved masks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.vectors import VectorReader
from smet.mask import TileGrid


class SavedMasks:
    """The packed masks of the verified checkpoint at ``path``, shard by shard."""

    def __init__(self, path: Path):
        self._reader = VectorReader(path)
        self._lengths = {name: entry.size.numel() for name, entry in self._reader.entries().items()}

    def shard(self, name: str, grid: TileGrid, shard: int, shards: int, active: int) -> Tensor | None:
        """Part ``shard`` of ``shards`` of the packed mask of layer ``name``; None where there is no such mask.

        None too if its layer has another size or another number of active tiles than ``active``: then the
        checkpoint is of another model, which is reported when its vectors are read.

        Args:
            grid: blocks of one shard.
            active: active tiles of the whole layer.
        """
        key = f"{name}.mask"
        expected = {key: grid.mask_bytes * shards, f"{name}.values": active * grid.tile_size}
        if any(self._lengths.get(vector) != length for vector, length in expected.items()):
            return None
        bits = torch.zeros(grid.mask_bytes, dtype=torch.uint8)
        self._reader.fill(key, bits, shard * grid.mask_bytes, expected[key])
        return bits
