"""Prune and grow as pure functions of scores and masks. Nothing here knows of ranks or optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smet.mask import pack, unpack
from smet.seeds import sample_without_replacement


@dataclass(frozen=True)
class TopologyChange:
    """The new mask of one layer, and how stored values move.

    ``kept`` says for each old active block, in stored order, whether it survives; ``grown`` says
    for each new active block whether it is new. The survivors, in order, fill the places of the
    new order that are not ``grown``. Both are bool vectors of the (constant) number of active blocks.
    """

    bits: Tensor
    kept: Tensor
    grown: Tensor

    @property
    def count(self) -> int:
        """Number of blocks replaced."""
        return int(self.grown.sum())


def block_scores(values: Tensor, block_size: int) -> Tensor:
    """L1 norm of each active block: ``(active * block_size,)`` to ``(active,)``."""
    return values.view(-1, block_size).abs().sum(1)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Bool vector that marks the ``count`` smallest scores; of equal scores the first ones. NaN is largest."""
    marked = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if count <= 0:
        return marked
    # A NaN compares as false: fewer than count would be marked, and the number of active blocks would drift.
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    threshold = torch.kthvalue(scores, count).values
    marked = scores < threshold
    ties = (scores == threshold).nonzero().view(-1)
    marked[ties[: count - int(marked.sum())]] = True
    return marked


def prune(scores: Tensor, count: int, protected: Tensor | None = None) -> Tensor:
    """Which active blocks to prune: the ``count`` smallest that are not ``protected``.

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


def grow_by_gradient(inactive: Tensor, count: int, gradient_scores: Tensor) -> Tensor:
    """The ``count`` inactive positions of largest score (RigL, Evci et al. 2020), first ones at ties."""
    positions = inactive.nonzero().view(-1)
    return positions[smallest(-gradient_scores[positions], count)]


def change_topology(
    scores: Tensor,
    bits: Tensor,
    blocks: int,
    count: int,
    rng: torch.Generator,
    protected: Tensor | None = None,
    gradient_scores: Tensor | None = None,
) -> TopologyChange:
    """Prune ``count`` active blocks and grow as many among those inactive before the prune.

    Args:
        scores: score of each active block, ``(active,)``.
        bits: packed mask, uint8 ``(ceil(blocks / 8),)``.
        count: blocks to replace; fewer are replaced where fewer are inactive or unprotected.
        rng: source of random growth; equal on all ranks.
        protected: bool ``(active,)``; these are not pruned.
        gradient_scores: ``(blocks,)``; grow by these instead of at random.
    """
    return _packed(_change(scores, unpack(bits, blocks), count, rng, protected, gradient_scores))


def change_by_ranges(
    scores: Tensor,
    bits: Tensor,
    blocks: int,
    fraction: float,
    rngs: Sequence[torch.Generator],
    protected: Tensor | None = None,
    gradient_scores: Tensor | None = None,
) -> TopologyChange:
    """``change_topology`` for each of ``len(rngs)`` equal ranges of the layer by itself.

    Each range replaces ``floor(fraction * its active blocks)``. As long as tensor-parallel shards hold whole
    ranges, the decision does not depend on how many shards there are.
    """
    masks = unpack(bits, blocks).chunk(len(rngs))
    counts = [int(mask.sum()) for mask in masks]
    parts = zip(
        scores.split(counts),
        masks,
        rngs,
        [None] * len(rngs) if protected is None else protected.split(counts),
        [None] * len(rngs) if gradient_scores is None else gradient_scores.chunk(len(rngs)),
        strict=True,
    )
    changes = [_change(s, mask, int(fraction * s.numel()), rng, p, g) for s, mask, rng, p, g in parts]
    return _packed(tuple(torch.cat(pieces) for pieces in zip(*changes, strict=True)))


def _packed(change: Sequence[Tensor]) -> TopologyChange:
    mask, kept, grown = change
    return TopologyChange(bits=pack(mask), kept=kept, grown=grown)


def _change(
    scores: Tensor,
    mask: Tensor,
    count: int,
    rng: torch.Generator,
    protected: Tensor | None,
    gradient_scores: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """New mask, kept and grown; see ``change_topology`` and ``TopologyChange``."""
    pruned = prune(scores, min(count, mask.numel() - scores.numel()), protected)
    if gradient_scores is None:
        grown_at = grow_random(~mask, int(pruned.sum()), rng)
    else:
        grown_at = grow_by_gradient(~mask, int(pruned.sum()), gradient_scores)
    new_mask = mask.clone()
    new_mask[mask.nonzero().view(-1)[pruned]] = False
    new_mask[grown_at] = True
    born = torch.zeros_like(mask)
    born[grown_at] = True
    return new_mask, ~pruned, born[new_mask]


def random_active(blocks: int, active: int, rng: torch.Generator) -> Tensor:
    """Bool vector ``(blocks,)`` with exactly ``active`` set, uniformly: those with the smallest random keys."""
    return smallest(torch.rand(blocks, generator=rng), active)


def largest(scores: Tensor, active: int) -> Tensor:
    """Bool vector that marks the ``active`` largest scores ``(blocks,)``; of equal scores the first ones."""
    return smallest(-scores, active)


def random_mask(blocks: int, active: int, rng: torch.Generator) -> Tensor:
    """Packed mask with exactly ``active`` of ``blocks`` set, uniformly."""
    return pack(random_active(blocks, active, rng))


def magnitude_mask(scores: Tensor, active: int) -> Tensor:
    """Packed mask of the ``active`` blocks with the largest scores ``(blocks,)``."""
    return pack(largest(scores, active))
