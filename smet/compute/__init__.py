"""Who multiplies: a table of backends, of which the first that serves a layer does all its products.

``dense`` serves everything: it expands the weight, multiplies as any linear layer does, and compresses the
gradient. Others go before it in ``TABLE`` and serve what they are faster at. ``SMET_COMPUTE`` in the
environment forces a choice:

    auto    the default: the first of the table that serves the layer
    NAME    the backend of that name wherever it can serve, ``dense`` elsewhere
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from smet.compute.dense import Dense
from smet.compute.tiles import Tiles
from smet.errors import ConfigError, nearest

if TYPE_CHECKING:
    from smet.linear import SparseLinear

__all__ = ["DENSE", "TABLE", "Compute", "choose"]


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
        """Active entries of ``grad^T x``, in the order of ``values``: ``(active * block_size,)``."""

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        """Floating-point operations of the three products together; a multiplication and an addition are two."""


DENSE: Compute = Dense()
TABLE: list[Compute] = [Tiles(), DENSE]
"""In the order in which they are asked; the last one serves everything."""


def choose(layer: SparseLinear, x: Tensor) -> Compute:
    """The backend for ``layer`` and inputs like ``x``.

    Raises:
        ConfigError: ``SMET_COMPUTE`` names no backend.
    """
    wanted = os.environ.get("SMET_COMPUTE") or "auto"
    if wanted == "auto":
        return next(backend for backend in TABLE if backend.serves(layer, x))
    names = [backend.name for backend in TABLE]
    if wanted not in names:
        known = ["auto", *names]
        raise ConfigError(f"SMET_COMPUTE is '{wanted}', expected one of {', '.join(known)}{nearest(wanted, known)}")
    backend = TABLE[names.index(wanted)]
    return backend if backend.serves(layer, x, forced=True) else DENSE
