"""MaskBank: the masks of a model, cut evenly over data-parallel ranks at rest.

Masks are grouped in buckets, one per decoder layer. Each rank keeps ``1 / D`` of a bucket's bytes;
the whole bucket exists only around the time when its layers compute. The next bucket in the direction of
travel (forward or backward) is gathered in the background meanwhile, on a process group of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet.agreement import differing, raise_together
from smet.errors import ConfigError
from smet.exchange import all_gather_flat
from smet.linear import SparseLinear, sparse_layers
from smet.mask import MaskPart, count_active, digest
from smet.named import is_own
from smet.settings import REMEMBERED

PATIENCE = timedelta(minutes=5)
"""How long ranks wait for each other where some may not come."""


@dataclass
class _Bucket:
    """Masks of consecutive layers, back to back, padded to a multiple of the number of ranks."""

    layers: list[tuple[str, SparseLinear, int]] = field(default_factory=list)  # name, layer, byte offset
    size: int = 0
    shard: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    whole: Tensor | None = None
    pending: Any = None


def bucket_key(name: str) -> str:
    """Name of the decoder layer that a module belongs to: everything up to the first number."""
    match = re.match(r"^(.*?\.)?\d+(?=\.|$)", name)
    return match.group(0) if match else name


def window(index: int, before: int | None, count: int) -> tuple[int, ...]:
    """Buckets to hold while bucket ``index`` of ``count`` is used: it, and the one that will be asked for next.

    The direction is that from bucket ``before``. At either end it turns: after the last bucket of the forward pass
    comes the backward pass, and after the first one of the backward pass the next forward pass.
    """
    if count == 1:
        return (index,)
    rising = index == 0 or (index < count - 1 and (before is None or index > before))
    return index, index + (1 if rising else -1)


def require_same_first_masks(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Compare masks that functions of one's own chose; those of this package are pure. Collective over ``group``.

    Raises:
        ConfigError: they differ; on every rank.
    """
    told = [config for module in model.modules() for config in vars(module).get(REMEMBERED, [])]
    own = [config.mask_init for config in told if is_own(config.mask_init)]
    if not own or group is None or dist.get_world_size(group) == 1 or dist.get_backend(group) == "fake":
        return
    masks = {name: digest(layer.mask) for name, layer in sparse_layers(model).items() if layer.mask is not None}
    if found := differing(masks, group):
        raise ConfigError(
            f"mask_init '{own[0]}' chooses differently on the ranks that hold {found[0]}; make it a function of what it"
            " is given alone, and draw random numbers from start.generator(...)"
        )


class MaskBank:
    """Serves packed masks to the ``SparseLinear`` layers of ``model``.

    Args:
        model: its sparse layers hand over their own mask buffers.
        group: data-parallel process group, for whose ranks the masks are equal; None = one rank.
        replicated: keep every mask whole on every rank (more memory, no gathers).

    Raises:
        ConfigError: a first mask that a function of one's own chose is not the same on all ranks of ``group``; parts
            of masks were loaded before, and are not those of these ranks.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None, replicated: bool = False):
        self.group = group
        self.ranks = dist.get_world_size(group) if group is not None else 1
        self.rank = dist.get_rank(group) if group is not None else 0
        self.sharded = self.ranks > 1 and not replicated
        self.bytes_gathered = 0
        """Bytes received by this rank in mask gathers so far."""
        self._buckets: list[_Bucket] = []
        self._place: dict[SparseLinear, tuple[int, int]] = {}
        self._current: int | None = None
        require_same_first_masks(model, group)
        layers = {name: layer for name, layer in sparse_layers(model).items() if not layer.is_full}
        if self.sharded:
            self._take_over(layers)
        self._take_parts(layers)

    def _take_over(self, layers: dict[str, SparseLinear]) -> None:
        keys: dict[str, _Bucket] = {}
        for name, layer in layers.items():
            bucket = keys.setdefault(bucket_key(name), _Bucket())
            self._place[layer] = (list(keys).index(bucket_key(name)), bucket.size)
            bucket.layers.append((name, layer, bucket.size))
            bucket.size += layer.grid.mask_bytes
        for bucket in keys.values():
            whole = torch.cat([layer.mask for _, layer, _ in bucket.layers])  # type: ignore[misc]
            self._store(bucket, whole)
            for _, layer, _ in bucket.layers:
                layer.mask, layer.source = None, self
            self._buckets.append(bucket)

    def _take_parts(self, layers: dict[str, SparseLinear]) -> None:
        """Take the parts of masks that were loaded before there was a bank. Collective."""
        group = self.group if self.sharded and dist.get_backend(self.group) != "fake" else None
        if differing({"part": [name for name, layer in layers.items() if layer.part is not None]}, group):
            raise ConfigError(
                "some ranks have loaded parts of masks and others not; load one checkpoint on all of them"
            )
        given = {layer: layer.part for layer in layers.values() if layer.part is not None}
        failure = None
        try:
            for layer, part in given.items():
                layer.part = None
                self.load_part(layer, part)
        except ConfigError as error:
            failure = error
        if not given:
            return
        raise_together(failure, group)
        wrong = [name for name, layer in layers.items() if count_active(self.bits(layer)) != layer.active]
        self.release()
        if wrong:
            raise ConfigError(
                f"the parts of the mask of {wrong[0]} that the ranks loaded are no mask of its density; load one"
                " checkpoint on all of them"
            )

    def _store(self, bucket: _Bucket, whole: Tensor) -> None:
        part = -(-bucket.size // self.ranks)
        padded = whole.new_zeros(part * self.ranks)
        padded[: bucket.size] = whole[: bucket.size]
        bucket.shard = padded[part * self.rank : part * (self.rank + 1)].clone()

    def bits(self, layer: SparseLinear) -> Tensor:
        """The whole packed mask of ``layer``. Collective over the group: all ranks ask in the same order."""
        if layer.is_full:
            return layer.packed_mask()
        if not self.sharded:
            assert layer.mask is not None
            return layer.mask
        index, offset = self._place[layer]
        if index != self._current:
            self._travel_to(index)
        whole = self._finish(self._buckets[index])
        return whole[offset : offset + layer.grid.mask_bytes]

    def _travel_to(self, index: int) -> None:
        wanted = window(index, self._current, len(self._buckets))
        for other, bucket in enumerate(self._buckets):
            if other not in wanted:
                self._drop(bucket)
        self._current = index
        for other in wanted:
            self._begin(self._buckets[other])

    def _begin(self, bucket: _Bucket) -> None:
        if bucket.whole is None:
            bucket.whole = bucket.shard.new_empty(bucket.shard.numel() * self.ranks)
            bucket.pending = all_gather_flat(bucket.whole, bucket.shard, group=self.group, async_op=True)
            self.bytes_gathered += bucket.shard.numel() * (self.ranks - 1)

    def _finish(self, bucket: _Bucket) -> Tensor:
        if bucket.pending is not None:
            bucket.pending.wait()
            bucket.pending = None
        assert bucket.whole is not None
        return bucket.whole

    def _drop(self, bucket: _Bucket) -> None:
        if bucket.pending is not None:
            bucket.pending.wait()
        bucket.whole = bucket.pending = None

    def release(self) -> None:
        """Free every gathered mask, and what layers made of them; what remains is what is at rest."""
        for bucket in self._buckets:
            self._drop(bucket)
        for layer in self._place:
            layer.mask_changed()
        self._current = None

    def write(self, layer: SparseLinear, bits: Tensor) -> None:
        """Replace the mask of ``layer`` by ``bits`` (the whole packed mask, equal on all ranks)."""
        if layer.is_full:
            return  # what was stored, is; which of it is closed is no mask's business
        layer.mask_changed()
        if not self.sharded:
            assert layer.mask is not None
            layer.mask.copy_(bits)
            return
        for _, lo, shard in self._pieces(layer):
            shard.copy_(bits[lo : lo + shard.numel()])
        index, offset = self._place[layer]
        whole = self._buckets[index].whole
        if whole is not None:
            self._finish(self._buckets[index])
            whole[offset : offset + bits.numel()] = bits

    def _pieces(self, layer: SparseLinear) -> Iterator[tuple[int, int, Tensor]]:
        """(bucket, first byte within the layer's mask, live view of this rank's bytes)."""
        index, offset = self._place[layer]
        shard = self._buckets[index].shard
        begin = self.rank * shard.numel()
        lo = max(offset, begin)
        hi = min(offset + layer.grid.mask_bytes, begin + shard.numel())
        if lo < hi:
            yield index, lo - offset, shard[lo - begin : hi - begin]

    def fragment(self, layer: SparseLinear) -> tuple[int, Tensor]:
        """(first byte, live view) of this rank's part of the packed mask of ``layer``; may be empty.

        Where masks are replicated, rank 0 of the group counts as the owner of all of it.
        """
        if not self.sharded:
            assert layer.mask is not None
            return (0, layer.mask) if self.rank == 0 else (0, layer.mask[:0])
        for _, lo, shard in self._pieces(layer):
            return lo, shard
        return 0, self._buckets[self._place[layer][0]].shard[:0]

    def part(self, layer: SparseLinear) -> MaskPart:
        """What this rank keeps of the packed mask of ``layer``, to be saved."""
        first, own = self.fragment(layer)
        return MaskPart(first, self.rank, self.ranks, own.clone())

    def load(self, layer: SparseLinear, bits: Tensor) -> None:
        """``write``, between two steps: masks that are being gathered are dropped before."""
        self._settle(layer)
        self.write(layer, bits)

    def load_part(self, layer: SparseLinear, part: MaskPart) -> None:
        """Replace what this rank keeps of the mask of ``layer``.

        Raises:
            ConfigError: it was cut over other ranks.
        """
        first, own = self.fragment(layer)
        if (part.first, part.rank, part.ranks, part.own.numel()) != (first, self.rank, self.ranks, own.numel()):
            raise ConfigError(
                f"the state has the part of rank {part.rank} of {part.ranks} of a mask, expected that of rank"
                f" {self.rank} of {self.ranks}: parts load where they were saved, at the same layout"
            )
        self._settle(layer)
        own.copy_(part.own)
        layer.mask_changed()

    def _settle(self, layer: SparseLinear) -> None:
        if self.sharded:
            self._drop(self._buckets[self._place[layer][0]])
            self._current = None

    def meet(self) -> None:
        """Wait for the ranks that share the masks out. Collective.

        Raises:
            ConfigError: one of them does not come within ``PATIENCE``.
        """
        token = self._buckets[0].shard.new_zeros(1) if self._buckets else torch.zeros(1)
        try:
            dist.all_reduce(token, group=self.group, async_op=True).wait(timeout=PATIENCE)
        except RuntimeError as error:
            raise ConfigError(
                f"not all of the {self.ranks} ranks that share the masks out asked for the model's state dict within"
                f" {PATIENCE.total_seconds():.0f} s; call state_dict() on every rank, and write its file on one"
            ) from error

    def tensors(self) -> list[Tensor]:
        """Every tensor that holds mask bits on this rank now (at rest after ``release``)."""
        gathered = [bucket.whole for bucket in self._buckets if bucket.whole is not None]
        return [bucket.shard for bucket in self._buckets] + gathered

    def to(self, device: torch.device | str) -> None:
        """Move the shards to ``device``."""
        self.release()
        for bucket in self._buckets:
            bucket.shard = bucket.shard.to(device)
