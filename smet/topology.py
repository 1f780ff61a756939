"""Prune and grow as pure functions of scores and masks. Nothing here knows of ranks or optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smet.mask import pack
from smet.seeds import sample_without_replacement


@dataclass(frozen=True)
class TopologyChange:
    """The new mask of one layer, and how stored values move.

    ``kept`` says for each old active tile, in stored order, whether it survives; ``grown`` says
    for each new active tile whether it is new. The survivors, in order, fill the places of the
    new order that are not ``grown``. All are bool vectors of the (constant) number of stored tiles.

    Where density falls, some of the stored tiles are ``closed``: they are among ``grown`` (their values are 0), and
    not trained.
    """

    bits: Tensor
    kept: Tensor
    grown: Tensor
    closed: Tensor
    unmoved: int = 0
    """Tiles that were to be replaced and stay, for want of a place that keeps the degrees."""
    uneven: int = 0
    """Rows and columns of tiles, of each range, that are off balance; counted where masks move towards it."""

    @property
    def count(self) -> int:
        """Number of tiles that are new and trained."""
        return int((self.grown & ~self.closed).sum())


def tile_scores(values: Tensor, tile_size: int) -> Tensor:
    """L1 norm of each active tile: ``(active * tile_size,)`` to ``(active,)``."""
    return values.view(-1, tile_size).abs().sum(1)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Bool vector that marks the ``count`` smallest scores; of equal scores the first ones. NaN is largest."""
    marked = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if count <= 0:
        return marked
    # A NaN compares as false: fewer than count would be marked, and the number of active tiles would drift.
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    threshold = torch.kthvalue(scores, count).values
    marked = scores < threshold
    ties = (scores == threshold).nonzero().view(-1)
    marked[ties[: count - int(marked.sum())]] = True
    return marked


def prune(scores: Tensor, count: int, protected: Tensor | None = None) -> Tensor:
    """Which active tiles to prune: the ``count`` smallest that are not ``protected``.

    Fewer are pruned where protection leaves fewer candidates.
    """
    if protected is None:
        return smallest(scores, min(count, scores.numel()))
    candidates = (~protected).nonzero().view(-1)
    pruned = torch.zeros_like(protected)
    pruned[candidates] = smallest(scores[candidates], min(count, candidates.numel()))
    return pruned


def grow_random(inactive: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """``count`` positions of the True entries of ``inactive``, uniformly (SET, Mocanu et al. 2018)."""
    positions = inactive.nonzero().view(-1)
    return positions[sample_without_replacement(positions.numel(), count, rng).to(positions.device)]


def grow_by_score(inactive: Tensor, count: int, scores: Tensor) -> Tensor:
    """The ``count`` inactive positions of largest score ``(tiles,)``, first ones at ties."""
    positions = inactive.nonzero().view(-1)
    return positions[smallest(-scores[positions], count)]


Moves = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mask of what is stored, kept, grown and closed; see ``TopologyChange``."""


def replaced(mask: Tensor, pruned: Tensor, grown_at: Tensor, stored: Tensor | None = None) -> Moves:
    """What is stored of one range after an update.

    As many tiles stay stored as were. Where fewer are open than that, the first of the stored ones that are not open
    any more fill the places, closed.

    Args:
        mask: bool ``(tiles,)``: the open ones.
        pruned: bool ``(open,)``: which of them go.
        grown_at: places that are not open, to be opened.
        stored: bool ``(tiles,)``: all that are stored; None = the open ones.
    """
    if stored is None and grown_at.numel() == int(pruned.sum()):
        return _exchanged(mask, pruned, grown_at)
    stored = mask if stored is None else stored
    survives = mask.clone()
    survives[mask.nonzero().view(-1)[pruned]] = False
    opened = survives.clone()
    opened[grown_at] = True
    fill = (stored & ~opened).nonzero().view(-1)[: int(stored.sum()) - int(opened.sum())]
    closed = torch.zeros_like(mask)
    closed[fill] = True
    now = opened | closed
    return now, survives[stored], ~survives[now], closed[now]


def _exchanged(mask: Tensor, pruned: Tensor, grown_at: Tensor) -> Moves:
    """``replaced`` where as many tiles are opened as go, without the passes over whole masks that a fill needs."""
    now, grown = mask.masked_scatter(mask, ~pruned), torch.zeros_like(pruned)
    now[grown_at] = True
    grown[now.cumsum(0, dtype=torch.int32)[grown_at].long() - 1] = True
    return now, ~pruned, grown, torch.zeros_like(grown)


def joined(changes: Sequence[Moves], unmoved: int = 0, uneven: int = 0) -> TopologyChange:
    """The change of a layer from those of its ranges, in order."""
    mask, kept, grown, closed = (torch.cat(pieces) for pieces in zip(*changes, strict=True))
    return TopologyChange(bits=pack(mask), kept=kept, grown=grown, closed=closed, unmoved=unmoved, uneven=uneven)


def random_active(tiles: int, active: int, rng: torch.Generator) -> Tensor:
    """Bool vector ``(tiles,)`` with exactly ``active`` set, uniformly: those with the smallest random keys."""
    return smallest(torch.rand(tiles, generator=rng), active)


def largest(scores: Tensor, active: int) -> Tensor:
    """Bool vector that marks the ``active`` largest scores ``(tiles,)``; of equal scores the first ones."""
    return smallest(-scores, active)


def magnitude_mask(scores: Tensor, active: int) -> Tensor:
    """Packed mask of the ``active`` tiles with the largest scores ``(tiles,)``."""
    return pack(largest(scores, active))
