"""Masks whose rows and columns of tiles have equal numbers of active ones, or one more: first ones, and what an update
grows where, so that old masks come nearer to that.

A uniform draw of large tiles leaves rows of them nearly or quite empty. Here every row of a layer has its exact share,
whatever the ranges: rows differ by at most one active tile, and so do columns, over the layer and within each range.
All of it is computed on the CPU, from the same numbers on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_degrees(rows: int, active: int) -> Tensor:
    """Active tiles of each row, int64 ``(rows,)``: those with one more are spread evenly.

    So any range of rows has a count that follows from the density alone.
    """
    return (torch.arange(rows + 1) * active // rows).diff()


def dealt(rows: int, cols: int, active: int, ranges: int, rng: torch.Generator) -> Tensor:
    """A random balanced mask, bool ``(rows * cols,)``: columns are shuffled and dealt out to the rows like cards.

    The rows of a range are served in random order. It begins with a deck of the columns that are to have one more in
    this range, which take turns over the ranges; whole decks follow. Who finds a deck too small takes the rest from
    the next, without what is in the hand.

    Args:
        active: tiles that are to be active.
        ranges: equal ranges of rows.
    """
    degrees, own = row_degrees(rows, active), rows // ranges
    mask, turns, turn = torch.zeros(rows, cols, dtype=torch.bool), torch.randperm(cols, generator=rng), 0
    for part in range(ranges):
        order = (part * own + torch.randperm(own, generator=rng)).tolist()
        total = int(degrees[part * own : (part + 1) * own].sum())
        deck = turns[(turn + torch.arange(total % cols)) % cols]
        turn, deck = turn + total % cols, deck[torch.randperm(deck.numel(), generator=rng)]
        for row in order:
            hand, deck = deck.tensor_split([min(int(degrees[row]), deck.numel())])
            mask[row, hand] = True
            if (missing := int(degrees[row]) - hand.numel()) > 0:
                deck = torch.randperm(cols, generator=rng)
                more = deck[~mask[row][deck]][:missing]
                mask[row, more] = True
                deck = deck[~torch.zeros(cols, dtype=torch.bool).index_fill_(0, more, True)[deck]]
    return mask.view(-1)


def chosen(scores: Tensor, rows: int, cols: int, active: int, ranges: int) -> Tensor:
    """The balanced mask of large ``scores`` ``(rows * cols,)``, bool of the same shape, on the CPU.

    Every row takes its best; then rows move tiles from columns that have too many to those that have too few, those
    first that lose least by it. Of equals the first.

    Args:
        active, ranges: as of ``dealt``.
    """
    grid = scores.detach().float().cpu().nan_to_num().view(rows, cols)
    own, extras, masks = rows // ranges, torch.zeros(cols, dtype=torch.int64), []
    for part, degrees in zip(grid.split(own), row_degrees(rows, active).split(own), strict=True):
        best_first = part.argsort(dim=1, descending=True, stable=True)
        taken = torch.arange(cols) < degrees.unsqueeze(1)
        mask = torch.zeros_like(taken).scatter_(1, best_first, taken)
        total = int(degrees.sum())
        wanted = mask.sum(0).argsort(descending=True, stable=True)
        one_more = wanted[extras[wanted].argsort(stable=True)][: total % cols]  # who had fewest so far, most wanted
        extras[one_more] += 1
        target = torch.full((cols,), total // cols)
        target[one_more] += 1
        _move(mask, part, target)
        masks.append(mask)
    return torch.cat(masks).view(-1)


def _move(mask: Tensor, scores: Tensor, target: Tensor) -> None:
    """Let the columns of ``mask`` have ``target`` active tiles each; rows keep their number.

    It ends: where one column has too many and another too few, some row is active in the one and not in the other.
    """
    while bool((over := mask.sum(0) - target).any()):
        leaving, coming = mask & (over > 0), ~mask & (over < 0)
        lost, source = scores.masked_fill(~leaving, torch.inf).min(1)
        won, goal = scores.masked_fill(~coming, -torch.inf).max(1)
        rows = (leaving.any(1) & coming.any(1)).nonzero().view(-1)
        rows = rows[(lost - won)[rows].argsort(stable=True)]
        source, goal = source[rows], goal[rows]
        fits = (ranks_within(source) < over[source]) & (ranks_within(goal) < -over[goal])
        mask[rows[fits], source[fits]] = False
        mask[rows[fits], goal[fits]] = True


def uneven(mask: Tensor, cols: int) -> int:
    """Rows and columns of ``mask``, bool ``(rows * cols,)``, that have more active tiles or fewer than equal shares."""
    grid = mask.view(-1, cols)
    return sum(int(off_balance(grid.sum(dim)).count_nonzero()) for dim in (0, 1))


def off_balance(degrees: Tensor) -> Tensor:
    """Active tiles that each row (or column) has beyond its share, int64: negative where it lacks some.

    Any number between the equal share rounded down and rounded up is balanced.
    """
    total, count = int(degrees.sum()), degrees.numel()
    fewest, most = total // count, -(-total // count)
    return (degrees - most).clamp(min=0) - (fewest - degrees).clamp(min=0)


def beyond_first(scores: Tensor, mask: Tensor, cols: int) -> Tensor:
    """Ranks of ``scores`` ``(active,)``, those first that rows and columns have beyond their share: their smallest.

    Without it rows keep what they have too many of: old tiles are larger than what grew at the last update.
    """
    places, order = mask.cpu().nonzero().view(-1), scores.cpu().argsort(stable=True)
    ranks = torch.empty(order.numel(), dtype=torch.float64)
    ranks[order] = torch.arange(order.numel(), dtype=torch.float64)
    beyond = torch.zeros(order.numel(), dtype=torch.bool)
    for lines, count in ((places // cols, mask.numel() // cols), (places % cols, cols)):
        beyond[order] |= ranks_within(lines[order]) < _to_give(torch.bincount(lines, minlength=count))[lines[order]]
    return (ranks - order.numel() * beyond).to(scores.device)


def _to_give(degrees: Tensor) -> Tensor:
    """How many active tiles each row (or column) has to lose for all of them to be balanced."""
    off = off_balance(degrees)
    given = off.clamp(min=0)
    if (lacking := -int(off.sum())) > 0:  # more than others have too many: some that have one more are to give it
        given[(degrees > int(degrees.sum()) // degrees.numel()).nonzero().view(-1)[:lacking]] += 1
    return given


def shares(degrees: Tensor, freed: Tensor, rng: torch.Generator) -> Tensor:
    """How many of the tiles that rows (or columns) lose each of them is to have again, int64 like ``degrees``.

    No row comes to lie further off balance than it lies: first all of them get back what they need to have as many as
    they had, or as balance asks for at least. What is left goes to whoever has fewest, of equals to those that lost.

    Args:
        degrees: active tiles of each row.
        freed: how many of them are taken away.
    """
    fewest = int(degrees.sum()) // degrees.numel()
    given = (degrees.clamp(max=fewest) - degrees + freed).clamp(min=0)
    order = torch.randperm(degrees.numel(), generator=rng)
    while (left := int((freed - given).sum())) > 0:
        now = (degrees - freed + given)[order]
        poorest, lost = now == now.min(), now < degrees[order]
        given[torch.cat([order[poorest & lost], order[poorest & ~lost]])[:left]] += 1
    return given


def ranks_within(groups: Tensor) -> Tensor:
    """How many earlier entries of ``groups``, int64 of one dimension, have the same value."""
    order, counts = groups.argsort(stable=True), torch.bincount(groups)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(groups)
    ranks[order] = torch.arange(groups.numel()) - first[groups[order]]
    return ranks
