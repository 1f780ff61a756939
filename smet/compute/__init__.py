"""Who multiplies: a table of backends, of which the first that serves a layer does all its products.

``dense`` serves everything: it expands the weight, multiplies as any linear layer does, and compresses the
gradient. Others go before it in ``TABLE`` and serve what they are faster at. ``SmetConfig.compute`` chooses, and
``SMET_COMPUTE`` in the environment overrides it:

    auto                    the default: what was measured to be fastest (``smet.measured``); where nobody measured, the
                            first of the table that serves the layer
    NAME                    the backend of that name wherever it can serve, ``dense`` elsewhere
    package.module:Class    the same, a backend of your own
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from smet import named, wanted
from smet.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from smet.linear import SparseLinear

__all__ = [
    "AUTO",
    "TABLE",
    "Compute",
    "Decided",
    "backend",
    "by_name",
    "choose",
    "chosen",
    "dense_backend",
    "describe",
    "problem",
]


class Compute(Protocol):
    """The three products of one layer. Values, results and gradients keep the dtype of ``x``.

    A backend is a pure function of what it is given: on every rank that holds the same layer and the same
    number of tokens ``serves`` says the same, so that collectives inside (masks that are gathered) match.
    """

    name: str

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Whether this backend is the one for ``layer`` and inputs like ``x``.

        Args:
            forced: whether it can at all, not whether it is worth it.
        """

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        """``x W^T``: ``(..., in)`` to ``(..., out)``."""

    def input_gradient(self, layer: SparseLinear, grad: Tensor, values: Tensor) -> Tensor:
        """``grad W``: ``(..., out)`` to ``(..., in)``."""

    def values_gradient(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> Tensor:
        """Active entries of ``grad^T x``, in the order of ``values``: ``(active * tile_size,)``."""

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        """Floating-point operations of the three products together; a multiplication and an addition are two."""


class Decided(NamedTuple):
    """Who multiplies in a layer, as it was measured for such inputs."""

    name: str
    """Of the backend."""
    tokens: int
    dtype: Any


METHODS = ("serves", "forward", "input_gradient", "values_gradient", "flops")
AUTO = "auto"
TABLE: dict[str, str | Compute] = {"tiles": "smet.compute.tiles:Tiles", "dense": "smet.compute.dense:Dense"}
"""Backends, or where they are, in the order in which they are asked; the last one serves everything."""


def problem(what: str, name: Any) -> str | None:
    """What is wrong with a choice as it is spelled, in a sentence that begins with ``what``; imports nothing."""
    return named.problem(what, name, {AUTO: None, **TABLE})


def backend(name: str, what: str = "compute") -> Compute | None:
    """The backend that ``name`` means; None for ``auto``. Imports its module.

    Args:
        what: the setting, for messages.

    Raises:
        ConfigError: there is none, or it lacks what ``Compute`` has.
    """
    if name == AUTO:
        return None
    if (wrong := problem(what, name)) is not None:
        raise ConfigError(wrong)
    return _of(TABLE.get(name, name), what)


_backends: dict[str, Compute] = {}
"""By address: one for all layers, since it may keep what it knows of them."""


def _of(entry: str | Compute, what: str = "compute") -> Compute:
    return _made(entry, what) if isinstance(entry, str) else entry


def _made(address: str, what: str) -> Compute:
    if address in _backends:
        return _backends[address]
    found: Any = named.find(what, address, {})
    lacking = [method for method in METHODS if not callable(getattr(found, method, None))]
    lacking += [] if isinstance(getattr(found, "name", None), str) else ["name"]
    if lacking:
        raise ConfigError(f"{what} is {address.partition(':')[2]}, which lacks {', '.join(lacking)} (see smet.compute)")
    wanted.require_methods(what, address, found if isinstance(found, type) else type(found), Compute)
    _backends[address] = wanted.make(what, address, found) if isinstance(found, type) else found
    return _backends[address]


def by_name(name: str) -> Compute:
    """The backend of that name in the table."""
    return _of(TABLE[name])


def dense_backend() -> Compute:
    """The backend that serves everything."""
    return _made("smet.compute.dense:Dense", "compute")


def choose(layer: SparseLinear, x: Tensor) -> Compute:
    """The backend for ``layer`` and inputs like ``x``.

    Raises:
        ConfigError: ``SMET_COMPUTE``, or the layer's setting, means no backend.
    """
    forced = os.environ.get("SMET_COMPUTE")
    told = vars(layer).get("compute", AUTO)  # layers that an earlier version pickled have none
    chosen = backend(forced, "SMET_COMPUTE") if forced else backend(told)
    if chosen is not None:
        return chosen if chosen.serves(layer, x, forced=True) else dense_backend()
    decided: Decided | None = vars(layer).get("decided")
    if decided is not None and decided.dtype == x.dtype and decided.name in TABLE:
        same = x.numel() == decided.tokens * layer.in_features
        if same and (found := by_name(decided.name)).serves(layer, x, forced=True):
            return found
        if decided.name == "dense":  # with other numbers of tokens too: who lost to it is likely no faster there
            return dense_backend()
    return next(one for one in map(_of, TABLE.values()) if one.serves(layer, x))  # asked for every product: no look-up


def chosen(layer: SparseLinear, tokens: int, dtype: Any) -> Compute:
    """The backend for ``layer`` and inputs of so many tokens."""
    return choose(layer, layer.values.new_empty(1, dtype=dtype).expand(tokens, layer.in_features))


def describe(layers: Iterable[SparseLinear], tokens: int, dtype: Any) -> str:
    """Who multiplies in ``layers``, for inputs of so many tokens, in a few words."""
    counts = Counter(chosen(layer, tokens, dtype).name for layer in layers)
    names = [f"{name} ({count} layers)" if len(counts) > 1 else name for name, count in counts.most_common()]
    forced = os.environ.get("SMET_COMPUTE")
    return ", ".join(names or ["nobody"]) + (f" (SMET_COMPUTE={forced})" if forced else "")
