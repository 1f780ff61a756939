"""What a backend makes of a layer's mask, kept until the mask is another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

if TYPE_CHECKING:
    from smet.linear import SparseLinear

T = TypeVar("T")


class OfMasks(Generic[T]):
    """Made anew whenever a layer has another mask, or the same one was written; layers that are gone are forgotten.

    Args:
        make: from a layer and its whole packed mask.
    """

    def __init__(self, make: Callable[[SparseLinear, Tensor], T]):
        self._make = make
        self._kept: WeakKeyDictionary[SparseLinear, tuple[Tensor | None, tuple[int | None, int], T]]
        self._kept = WeakKeyDictionary()

    def of(self, layer: SparseLinear, bits: Tensor | None = None) -> T:
        """What belongs to the mask of ``layer`` as it is. Collective where masks are sharded and this one has changed.

        Args:
            bits: that mask, where the caller has it anyway.
        """
        mask, version = layer.mask, layer.topology_version
        known = self._kept.get(layer)
        if known is None or known[0] is not mask or known[1] != version:
            known = mask, version, self._make(layer, layer.packed_mask() if bits is None else bits)
            self._kept[layer] = known
        return known[2]
