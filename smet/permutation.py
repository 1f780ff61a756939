"""Fixed permutations of a layer's inputs and outputs: which features share a tile.

A layer that has them stores ``W[outputs][:, inputs]``: its row ``i`` makes the feature ``outputs[i]``, its column ``j``
reads the feature ``inputs[j]``. Mask, values and tiles are those of the stored matrix, and so is what a compute backend
multiplies; whoever reads a weight sees its own order. Features are moved where the layer is entered and left.

They are a pure function of seed, layer and ``topology_ranges``. The side that tensor parallelism cuts is permuted
within ranges, so that every degree that divides their number has whole permutations, and the same ones.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef

from smet.kernels.reorder import reorder
from smet.mask import combined_digest
from smet.tickets import ticket_for

if TYPE_CHECKING:
    from smet.config import SmetConfig


class Order:
    """One permutation: place ``i`` holds the feature ``features[i]``, int64 ``(n,)`` on the CPU. Never changed."""

    def __init__(self, features: Tensor):
        self.features = features
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.ticket = ticket_for(self)
        """What operators are given in its place."""

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """It and its inverse there, int32."""
        if device not in self._on:
            there, back = self.features, self.features.argsort()
            self._on[device] = there.to(device, torch.int32), back.to(device, torch.int32)
        return self._on[device]

    def read(self, x: Tensor) -> Tensor:
        """Features ``(..., n)`` as stored columns meet them. Layers that read one ``x`` in turn share what is made."""
        if x.grad_fn is None or not torch.is_grad_enabled() or type(x) is not Tensor:  # may be written uncounted
            return _move(x, self)
        return _last.made_of(x, self)

    def write(self, y: Tensor) -> Tensor:
        """What stored rows make ``(..., n)``, feature by feature."""
        return _move(y, self, back=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Order:
        return self

    def __reduce__(self) -> tuple[type[Order], tuple[Tensor]]:
        return Order, (self.features,)


class _Last(threading.local):
    """What was made last, and of what. Nothing is kept alive: who multiplies it keeps it for the backward pass."""

    _made: TensorWeakRef | None = None
    _x: TensorWeakRef
    _key: tuple[Any, ...] = ()

    def made_of(self, x: Tensor, order: Order) -> Tensor:
        """``x`` in that order: the same tensor for the same ``x``; for another one of the same memory, as engines
        hand it to each layer, the same memory."""
        key = (order, StorageWeakRef(x.untyped_storage()), x._version, x.storage_offset(), x.shape, x.stride())
        made = self._made() if self._made is not None and key == self._key else None
        if made is not None and self._x() is x:
            return made
        made = _move(x, order, made=made)
        self._made, self._x, self._key = TensorWeakRef(made), TensorWeakRef(x), key
        return made


_last = _Last()


def _move(x: Tensor, order: Order, back: bool = False, made: Tensor | None = None) -> Tensor:
    moved: Tensor = _Moved.apply(x, order, back, made)
    return moved


class _Moved(torch.autograd.Function):
    """The last axis in another order, and its gradient in the order of before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, back: bool, made: Tensor | None) -> Tensor:
        ctx.order, ctx.back = order, back
        return reorder(x, order.on(x.device)[back]) if made is None else made.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _move(grads[0], ctx.order, not ctx.back), None, None, None


class Orders(NamedTuple):
    """Those of one layer, or of one tensor-parallel shard of it; None = features lie as they are."""

    inputs: Order | None = None
    outputs: Order | None = None

    def stored(self, weight: Tensor) -> Tensor:
        """W ``(out, in)`` in the order in which it is stored."""
        return self._moved(weight, False)

    def natural(self, weight: Tensor) -> Tensor:
        """What is stored, ``(out, in)``, in the order of features."""
        return self._moved(weight, True)

    def _moved(self, weight: Tensor, back: bool) -> Tensor:
        for axis, order in enumerate((self.outputs, self.inputs)):
            if order is not None:
                weight = weight.index_select(axis, order.on(weight.device)[back])
        return weight

    def digest(self) -> str:
        """128 bits of hex, alike on every rank and device; empty where nothing is permuted."""
        if self == NONE:
            return ""
        hashed = hashlib.blake2b(digest_size=16)
        for order in self:
            hashed.update(b"\0" if order is None else order.features.to(torch.int32).numpy().tobytes())
        return hashed.hexdigest()


NONE = Orders()


def orders_of(
    name: str, shape: tuple[int, int], transposed: bool, config: SmetConfig, shard: int = 0, shards: int = 1
) -> Orders:
    """The permutations of the layer ``name``, which has ``shape`` (outputs, inputs) as a whole, or of a shard of it.

    Layers of one parent that read as many features share those of their inputs: they are likely to read the same ones.
    A side along which tiles have one feature is not permuted.

    Args:
        transposed: whether its canonical matrix is ``(in, out)``; tensor parallelism then cuts its inputs.
    """
    if config.permute == "none":
        return NONE
    tall, wide = (side > 1 for side in (reversed(config.block) if transposed else config.block))
    parent, found = name.rpartition(".")[0], []
    for asked, what, whose, size, cut in (
        (wide, "inputs", parent, shape[1], transposed),
        (tall and config.permute == "both", "outputs", name, shape[0], not transposed),
    ):
        ranges, part = (config.topology_ranges, (shard, shards)) if cut else (1, (0, 1))
        found.append(_order((config.seed, what, whose, size, ranges), part) if asked else None)
    return Orders(*found)


_Purpose = tuple[int, str, str, int, int]
_orders: weakref.WeakValueDictionary[tuple[_Purpose, tuple[int, int]], Order] = weakref.WeakValueDictionary()


def _order(purpose: _Purpose, part: tuple[int, int]) -> Order:
    """The same object for the same features, by which ``read`` knows them."""
    found = _orders.get((purpose, part))
    if found is None:
        shard, shards = part
        whole = drawn(*purpose[-2:], *purpose[:-2])
        own = len(whole) // shards
        found = _orders[purpose, part] = Order(whole[shard * own : (shard + 1) * own] - shard * own)
    return found


def drawn(size: int, ranges: int, *purpose: object) -> Tensor:
    """A permutation of ``range(size)`` for ``purpose`` that leaves every number in its range: int64 ``(size,)``.

    The order of keys from SHAKE-256, and of no generator of torch's: it is drawn again at every start, on whatever
    machine and by whatever version, and has to come out alike.

    Args:
        ranges: equal ones, whose number divides ``size``.
    """
    text = "\x1f".join(map(str, ("permute", *purpose, size, ranges)))
    keys = torch.frombuffer(bytearray(hashlib.shake_256(text.encode()).digest(8 * size)), dtype=torch.int64)
    within = keys.view(ranges, -1).argsort(dim=1, stable=True)
    return (within + torch.arange(0, size, size // ranges, device="cpu").unsqueeze(1)).view(-1)


def unfit(shapes: Mapping[str, tuple[int, int]], config: SmetConfig, shards: int) -> list[str]:
    """Why layers cannot be permuted within ranges, one sentence each.

    Args:
        shapes: layer name to rows and columns of its whole canonical matrix.
        shards: tensor-parallel ones.
    """
    ranges = config.topology_ranges
    if not config.is_permuted or not shapes:
        return []
    if ranges % shards:
        return [
            f"topology_ranges is {ranges} with permute '{config.permute}', expected a multiple of the {shards}"
            " tensor-parallel ranks: features are permuted within ranges, so that every rank has whole permutations"
        ]
    if cut := [name for name, (rows, _) in shapes.items() if rows % ranges]:
        return [
            f"topology_ranges is {ranges} with permute '{config.permute}', expected a number that divides the rows of"
            f" every permuted layer: {cut[0]} has {shapes[cut[0]][0]}"
        ]
    return []


def digest_of(layers: Iterable[tuple[str, tuple[int, int], bool]], config: SmetConfig) -> str | None:
    """One digest of the permutations of whole layers, each (name, (outputs, inputs), transposed); None without any."""
    if not config.is_permuted:
        return None
    return combined_digest({name: orders_of(name, shape, turned, config).digest() for name, shape, turned in layers})
