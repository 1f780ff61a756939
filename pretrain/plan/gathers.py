"""How many weights ZeRO-3 gathers per micro-batch: DeepSpeed's rules of fetching, prefetching and releasing.

A parameter stays gathered after use when it is used again within ``stage3_max_reuse_distance`` elements, or when
the prefetcher met it while it was there. Small models are thus gathered once, large ones for every use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

DEFAULTS = {
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


@dataclass(frozen=True)
class Traced:
    """One parameter in the order of use."""

    name: str
    elements: int
    block: str = ""
    layer: bool = False
    """Whether that block is a decoder layer."""


_TURN = Traced("", 0)
"""Modules without parameters count as steps; some lie between a module's forward and backward pass."""


def gathered_elements(
    forward: Sequence[Traced], settings: Mapping[str, Any], persistent: int, checkpointing: bool
) -> int:
    """Elements gathered in one micro-batch, after the first ones in which DeepSpeed learns the order.

    Args:
        forward: parameters in the order in which the forward pass uses them.
        settings: ``zero_optimization`` keys that differ from the defaults.
        persistent: parameters of at most so many elements are always there.
        checkpointing: the backward pass of a decoder layer begins with its forward pass.
    """
    reuse, live, bucket = (int(settings.get(key, default)) for key, default in DEFAULTS.items())
    return _gathered(tuple(forward), checkpointing, reuse, live, bucket, persistent)


@lru_cache(maxsize=256)
def _gathered(
    forward: tuple[Traced, ...], checkpointing: bool, reuse: int, live: int, bucket: int, persistent: int
) -> int:
    order = [*forward, _TURN, *_backward(forward, checkpointing)]
    return _Coordinator(order, reuse, live, bucket, persistent).run()


def _backward(forward: Sequence[Traced], checkpointing: bool) -> list[Traced]:
    if not checkpointing:
        return list(reversed(forward))
    blocks: dict[str, list[Traced]] = {}
    for one in forward:
        blocks.setdefault(one.block, []).append(one)
    order: list[Traced] = []
    for members in reversed(blocks.values()):
        order += ([*members, _TURN] if members[0].layer else []) + members[::-1]
    return order


class _Coordinator:
    """The decisions of DeepSpeed's ``PartitionedParameterCoordinator``, without tensors."""

    def __init__(self, order: list[Traced], reuse: int, live: int, bucket: int, persistent: int):
        self.order, self.reuse, self.live, self.bucket, self.persistent = order, reuse, live, bucket, persistent
        self.here = {one for one in order if one.elements <= persistent}
        self.queue = deque((step, one) for step, one in enumerate(order) if one is not _TURN)
        self.promised: dict[Traced, int] = {}
        self.turn = order.index(_TURN)
        self.available = self.gathered = 0

    def run(self) -> int:
        """Elements gathered over the whole order."""
        for step, one in enumerate(self.order):
            if one is _TURN:
                continue
            # Recomputation stops inside a layer's last module, which so is not released before its backward pass.
            self._gather(one)
            self._prefetch(step, one)
            if self.order[step + 1 : step + 2] != [_TURN] or step + 1 == self.turn:
                self._release(step + 1, one)
        return self.gathered

    def _gather(self, one: Traced) -> None:
        if one not in self.here:
            self.here.add(one)
            self.gathered += one.elements
            self.available += one.elements

    def _prefetch(self, step: int, one: Traced) -> None:
        if self.promised.get(one, -1) < step:
            used_at, first = self.queue.popleft()
            self.promised[first] = used_at
        room = min(self.live - self.available, self.bucket)
        fetched = 0
        coming: list[Traced] = []
        while self.bucket > 0 and self.queue and fetched < room:
            used_at, other = self.queue.popleft()
            self.promised[other] = max(self.promised.get(other, -1), used_at)
            if other not in self.here and other not in coming:
                coming.append(other)
                fetched += other.elements
        for other in coming:
            self._gather(other)

    def _release(self, following: int, one: Traced) -> None:
        if one.elements <= self.persistent or self.promised.get(one, -1) > following:
            return
        distance = 0
        for other in self.order[following:]:
            if distance >= self.reuse:
                break
            if other == one:
                return
            distance += other.elements
        self.here.discard(one)
        self.available -= one.elements
