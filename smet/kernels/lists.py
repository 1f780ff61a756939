"""Where the active tiles of a mask are, as kernels read it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Lists(NamedTuple):
    """The active tiles of each row of tiles, or of each column: int32 vectors."""

    begin: Tensor
    """Where a row's entries begin, ``(rows + 1,)``."""
    inner: Tensor
    """Column of each entry, ``(active,)``."""
    slots: Tensor
    """Number of each entry's tile in the order in which values are stored, ``(active,)``."""


class Groups(NamedTuple):
    """Which tiles the programs of *sample* on a GPU work on; see ``tiles.groups_of``."""

    row: Tensor
    first: Tensor
