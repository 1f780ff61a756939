"""Topology updates that leave every row and column of tiles the number of active ones that it has, or bring it nearer
to that of the others.

A pruned tile (r, c) frees a place in its row and one in its column. Whoever takes over the place in the row takes one
in a column that another pruned tile freed: an update is a permutation of the columns of the pruned tiles, and a tile
that keeps its own column stays. So the degrees are kept whatever is found; what cannot be moved is counted. Towards
balance, some of the freed places lie in rows and columns that have too few instead: each move takes one from a row that
has too many and gives it to one that has too few, so that no row is further off whichever of the moves are made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smet.balance import ranks_within, shares

ROUNDS = 64
"""Attempts to find places for those that have none, by exchanging columns with others at random."""


def swapped(
    mask: Tensor, cols: int, pruned: Tensor, rng: torch.Generator, preferred: Tensor | None = None,
    towards: bool = False,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """What is really pruned, bool ``(active,)``; where as many are grown; and how many tiles stay for want of a place.

    Nothing grows where a tile was active before. It is computed on the CPU, and the answers lie where ``mask`` does.

    Args:
        mask: bool ``(rows * cols,)``.
        cols: columns of tiles.
        pruned: bool ``(active,)``, which are to be replaced.
        preferred: inactive places, the best first: taken greedily. What does not fit the degrees, and where None is
            given all of it, is decided at random.
        towards: let rows and columns that are off balance come nearer to it.
    """
    taken = mask.cpu()
    active = taken.nonzero().view(-1)
    going = pruned.cpu().nonzero().view(-1)
    rows, columns = active[going] // cols, active[going] % cols
    if towards:
        grid = taken.view(-1, cols)
        rows, columns = _towards(rows, grid.sum(1), rng), _towards(columns, grid.sum(0), rng)
    if preferred is None and 2 * active.numel() > taken.numel():  # a random permutation would hit few inactive places
        inactive = (~taken).nonzero().view(-1)
        preferred = inactive[torch.randperm(inactive.numel(), generator=rng)]
    if preferred is None:
        partner = torch.randperm(going.numel(), generator=rng)
    else:
        partner = _greedy(preferred.cpu(), rows, columns, (taken.numel() // cols, cols))
    moves = _Moves(taken, cols, rows, columns, partner)
    moves.mend(rng)
    stays = moves.settle()
    really = pruned.clone()
    really[going[stays].to(pruned.device)] = False
    return really, moves.places[~stays].to(mask.device), int(stays.sum())


def _towards(lost: Tensor, degrees: Tensor, rng: torch.Generator) -> Tensor:
    """The row (or column) in which each pruned tile frees a place: its own, unless others are to have it."""
    given = shares(degrees, torch.bincount(lost, minlength=degrees.numel()), rng)
    own = ranks_within(lost) < given[lost]
    more = given - torch.bincount(lost[own], minlength=degrees.numel())
    freed = lost.clone()
    freed[~own] = torch.arange(degrees.numel()).repeat_interleave(more)
    return freed


class _Moves:
    """Where each pruned tile goes: in the row that it freed, to the column that its ``partner`` freed."""

    def __init__(self, taken: Tensor, cols: int, rows: Tensor, columns: Tensor, partner: Tensor):
        self.taken, self.cols, self.rows, self.columns, self.partner = taken, cols, rows, columns, partner
        self.places = self._place(torch.arange(rows.numel()), partner)
        self.ill = taken[self.places] | ~_firsts(self.places)
        """Which have no place yet: theirs was active, or another has it."""

    def _place(self, tiles: Tensor, partner: Tensor) -> Tensor:
        return self.rows[tiles] * self.cols + self.columns[partner]

    def mend(self, rng: torch.Generator) -> None:
        """Exchange partners with others at random wherever both find places by it."""
        held = torch.zeros_like(self.taken)
        held[self.places[~self.ill]] = True
        for _ in range(ROUNDS):
            ill, well = (_shuffled(some.nonzero().view(-1), rng) for some in (self.ill, ~self.ill))
            count = min(ill.numel(), self.ill.numel() // 2)
            if not count:
                return
            line = torch.cat([ill, well])
            one, other = line[:count], line[-count:]
            both = torch.cat([self._place(one, self.partner[other]), self._place(other, self.partner[one])])
            free = ~self.taken[both] & ~held[both] & _firsts(both)
            fits = free[:count] & free[count:]
            one, other, both = one[fits], other[fits], both[fits.repeat(2)]
            held[self.places[other[~self.ill[other]]]] = False
            held[both] = True
            pair = torch.cat([one, other])
            self.partner[pair] = self.partner[torch.cat([other, one])]
            self.places[pair], self.ill[pair] = both, False

    def settle(self) -> Tensor:
        """Let those without a place stay, bool ``(pruned,)``; who had their columns takes over what they had."""
        partner, stays = self.partner.tolist(), torch.zeros_like(self.ill)
        todo = self.ill.nonzero().view(-1).tolist()
        if not todo:
            return stays
        owner = {column: tile for tile, column in enumerate(partner)}
        held = {int(self.places[tile]): tile for tile in (~self.ill).nonzero().view(-1).tolist()}
        while todo:
            tile = todo.pop()
            if stays[tile] or held.get(int(self.places[tile])) == tile:
                continue
            stays[tile] = True
            if (heir := owner[tile]) == tile:
                continue
            if held.get(int(self.places[heir])) == heir:
                del held[int(self.places[heir])]
            partner[heir], partner[tile] = partner[tile], tile
            owner[partner[heir]], owner[tile] = heir, tile
            place = int(self.rows[heir]) * self.cols + int(self.columns[partner[heir]])
            self.places[heir] = place
            if self.taken[place] or place in held:
                todo.append(heir)
            else:
                held[place] = heir
        return stays


def _greedy(preferred: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Partners by which places of ``preferred`` are grown, the best first, as far as rows and columns have any left."""
    left = [torch.bincount(rows, minlength=shape[0]), torch.bincount(columns, minlength=shape[1])]
    grown = [preferred[:0]]
    for places in preferred.split(max(1024, 2 * rows.numel())):
        while bool(left[0].any()):
            own = places // shape[1], places % shape[1]
            open_ = (left[0][own[0]] > 0) & (left[1][own[1]] > 0)
            if not bool(open_.any()):
                break
            places, row, column = places[open_], own[0][open_], own[1][open_]
            # Whoever has room even if all better ones were taken is taken by those who go through them one by one.
            fits = (ranks_within(row) < left[0][row]) & (ranks_within(column) < left[1][column])
            left[0] -= torch.bincount(row[fits], minlength=shape[0])
            left[1] -= torch.bincount(column[fits], minlength=shape[1])
            grown.append(places[fits])
            places = places[~fits]
    found = torch.cat(grown)
    tiles, partners = _members(rows, found // shape[1]), _members(columns, found % shape[1])
    partner, free = torch.full_like(rows, -1), torch.ones_like(rows, dtype=torch.bool)
    partner[tiles], free[partners] = partners, False
    alone = (partner < 0) & free  # neither moved nor taken over: these may stay where they are
    partner[alone], free[alone] = alone.nonzero().view(-1), False
    partner[partner < 0] = free.nonzero().view(-1)
    return partner


def _members(groups: Tensor, wanted: Tensor) -> Tensor:
    """For each entry of ``wanted`` an index of ``groups`` that has this value, each index once."""
    if not wanted.numel():
        return wanted
    order, counts = groups.argsort(stable=True), torch.bincount(groups)
    return order[(counts.cumsum(0) - counts)[wanted] + ranks_within(wanted)]


def _firsts(places: Tensor) -> Tensor:
    """Which entries are the first of their value."""
    found, order = places.sort(stable=True)
    marked = torch.ones_like(found, dtype=torch.bool)
    marked[order[1:]] = found[1:] != found[:-1]
    return marked


def _shuffled(numbers: Tensor, rng: torch.Generator) -> Tensor:
    return numbers[torch.randperm(numbers.numel(), generator=rng)]
