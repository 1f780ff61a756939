"""Criteria as anybody writes them, outside the package: named as ``tests.smet.own_criteria:NAME``."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from smet.criteria import needs
from smet.criteria.sites import Site, Start


@needs("active_gradient", "ages")
def faded(site: Site) -> Tensor:
    """|w| |g| of blocks, the old ones halved."""
    scores = (site.values.abs() * site.active_gradient.abs()).sum(1)
    return torch.where(site.ages.isinf(), scores / 2, scores)


@needs("gradient")
def mixed(site: Site, count: int) -> Tensor:
    """Half by the gradient, half at random."""
    by_gradient = site.gradient.masked_fill(site.mask, -math.inf).topk(count // 2).indices
    left = site.inactive.clone()
    left[by_gradient] = False
    places = left.nonzero().view(-1)
    drawn = torch.randperm(places.numel(), generator=site.generator("mixed"))[: count - count // 2]
    return torch.cat([by_gradient, places[drawn.to(places.device)]])


def halving(progress: float, start: float, end: float) -> float:
    """Halves with each quarter of the run."""
    return max(end, start * 0.5 ** int(4 * progress))


def first_ones(start: Start, active: int) -> Tensor:
    """The first blocks of the layer, and its last."""
    mask = torch.arange(start.tiles) < active - 1
    mask[-1] = True
    return mask


def square(site: Site) -> Tensor:
    """One score too many in each direction."""
    return site.values


def not_a_number(site: Site) -> Tensor:
    return site.values.sum(1) * math.nan


def broken(site: Site) -> Tensor:
    raise ZeroDivisionError("no such thing")


def unasked(site: Site) -> Tensor:
    return site.active_gradient.sum(1)


@needs("gradeint")
def misspelled(site: Site) -> Tensor:
    return site.values.sum(1)


def again(site: Site, count: int) -> Tensor:
    """Active places."""
    return site.mask.nonzero().view(-1)[:count]


def twice(site: Site, count: int) -> Tensor:
    return site.inactive.nonzero().view(-1)[:1].expand(count)


def beyond(site: Site, count: int) -> Tensor:
    return torch.arange(count) + site.mask.numel()


def each_its_own(site: Site, count: int) -> Tensor:
    """Other places on every rank."""
    places = site.inactive.nonzero().view(-1)
    return places[dist.get_rank() * count :][:count]


def fails_on_one(site: Site) -> Tensor:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")
    return site.values.sum(1)


def grows_nothing_on_one(site: Site, count: int) -> Tensor | None:
    return None if dist.get_rank() == 1 else site.inactive.nonzero().view(-1)[:count]


def rising(progress: float, start: float, end: float) -> float:
    return 1.0 + progress


def too_few(start: Start, active: int) -> Tensor:
    return torch.arange(start.tiles) < active - 1


def overwriting(site: Site) -> Tensor:
    """Works in place, on all that it was given."""
    site.mask.zero_()
    return site.values.abs_().mul_(0).sum(1)


@needs("weights")
def wiping(start: Start, active: int) -> Tensor:
    """Works in place on the initial weights."""
    start.weights.zero_()
    return torch.arange(start.tiles) < active


def leaving(site: Site) -> Tensor:
    raise SystemExit(3)


def narrow(progress: float) -> float:
    """Takes too little."""
    return 0.1


def late(progress: float, start: float, end: float) -> float:
    """Fails in the middle of a run, on one rank."""
    if progress > 0.3 and dist.is_initialized() and dist.get_rank() == 1:
        raise ValueError("too late for rank 1")
    return 0.1


def uneven(progress: float, start: float, end: float) -> float:
    """Another fraction on each rank."""
    return 0.1 + 0.1 * dist.get_rank() * (progress > 0.15)


def each_its_mask(start: Start, active: int) -> Tensor:
    """Another first mask on each rank."""
    mask = torch.arange(start.tiles) < active
    return mask.roll(dist.get_rank())


def mask_fails_on_one(start: Start, active: int) -> Tensor:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has no mask")
    return torch.arange(start.tiles) < active
