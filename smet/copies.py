"""Copies of sparse layers that somebody averages into entry by entry, across a change of topology.

``values[i]`` is the i-th *active* weight: after a topology update it is another one. An average that combines two
vectors by index (``AveragedModel``, a loop over ``zip(ema.parameters(), model.parameters())``) is right as long as
the topology stands still, and garbage afterwards, in a layer that looks well. Such an average is a deep copy of the
model that is written to, though it is never trained: the copy is remembered here, and before the topology of its
origin changes, and when the copy is used, its content is compared with what it was.

Not seen: averages outside of a copied model (lists of tensors, another model built alike).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from smet.agreement import fingerprint
from smet.dtensors import own
from smet.errors import ConfigError
from smet.kernels.watched import watched
from smet.tickets import ticket_for

if TYPE_CHECKING:
    from smet.linear import SparseLinear


@dataclass
class _Record:
    """What a copy held when it was last known to be a whole model of one topology."""

    origin: weakref.ref[SparseLinear]
    values: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    moved: bool = False
    """Whether the topology of the origin has changed since."""
    written: list[int] | None = None
    """Its values at the last change, where they were not ``values`` any more."""

    def take(self, layer: SparseLinear) -> None:
        """Begin anew with what ``layer`` holds."""
        self.values, self.mask = _print(layer.values), _print(layer.mask)
        self.moved, self.written = False, None


_records: weakref.WeakKeyDictionary[SparseLinear, _Record] = weakref.WeakKeyDictionary()


def _print(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else fingerprint([own(tensor)]).tolist()


def deep_copy(layer: SparseLinear, memo: dict[int, Any]) -> SparseLinear:
    """``copy.deepcopy(layer)``, remembered. What belongs to the run of the original stays there."""
    twin = type(layer).__new__(type(layer))
    memo[id(layer)] = twin
    own = {**layer.__getstate__(), "gradient_sink": None, "values_sink": None, "_dense": None, "_dense_key": None}
    twin.__dict__.update(copy.deepcopy(own, memo))
    twin.ticket = ticket_for(twin)
    if layer.mask is not None and layer.source is None and not watched(twin.values, twin.values):
        record = _Record(weakref.ref(layer))
        record.take(twin)
        _records[twin] = record
        if twin.values.requires_grad:
            itself = weakref.ref(twin)
            twin.values.register_post_accumulate_grad_hook(lambda _: forget(itself()))
    return twin


def written_whole(layer: SparseLinear) -> None:
    """``layer`` has got values and mask that belong together (``load_state_dict``)."""
    if _records and (record := _records.get(layer)) is not None:
        record.take(layer)


def forget(layer: SparseLinear | None) -> None:
    """``layer`` is a model in its own right from now on: it is trained."""
    if layer is not None:
        _records.pop(layer, None)


def before_topology_changes(layers: Iterable[SparseLinear]) -> None:
    """Look at the copies of ``layers``, whose topology is about to change.

    Raises:
        ConfigError: one of them is an average across the change before.
    """
    if not _records:
        return
    originals = set(layers)
    for twin, record in list(_records.items()):
        origin = record.origin()
        if origin not in originals:
            continue
        _require_whole(twin, record)
        if _same(twin, origin):
            record.take(twin)
        elif (content := _print(twin.values)) != record.values:
            record.written = content
        record.moved = True


def require_whole(layer: SparseLinear) -> None:
    """Refuse to compute with, or save, an average of values that stand for different weights.

    Raises:
        ConfigError: ``layer`` holds one.
    """
    if _records and (record := _records.get(layer)) is not None:
        _require_whole(layer, record)


def _require_whole(twin: SparseLinear, record: _Record) -> None:
    if not record.moved:
        return
    content = _print(twin.values)
    if content == (record.written or record.values):
        return
    origin = record.origin()
    if origin is not None and _same(twin, origin):
        record.take(twin)
        return
    # Written before the change and after it: mixed. Written only after it: whole if the masks came along.
    if record.written is not None or (origin is not None and _print(twin.mask) == record.mask != _print(origin.mask)):
        raise ConfigError(
            "a copy of a sparse model was averaged entry by entry with the model (AveragedModel, EMA, SWA) across a "
            "topology update, after which its values stand for other weights; average with smet.ModelAverage "
            "(to copy a model whole, use load_state_dict)"
        )


def _same(a: SparseLinear, b: SparseLinear) -> bool:
    return _print(a.mask) == _print(b.mask) and _print(a.values) == _print(b.values)
