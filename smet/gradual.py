"""Density that falls: which stored tiles are closed, and what follows from how many are open.

Storage keeps its first size, so that a parameter stays one vector of one length, whatever holds parts of it. A tile
that was pruned for good stays stored and is *closed*: its birth code is ``CLOSED``, its values and their state are 0,
and it gets no gradient, so that no formula moves it. Codes travel with the optimizer's state, to any layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smet.distribution import density_factor, open_tiles
from smet.errors import ConfigError
from smet.exchange import gather
from smet.linear import SparseLinear
from smet.mask import digest, pack, unpack
from smet.optim.ages import CLOSED
from smet.schedule import TopologySchedule
from smet.store import ParameterStore

PER_TILE = ("gradient", "moment")
"""What criteria are given by tile of the layer; everything else is by active tile."""


@dataclass(frozen=True)
class Room:
    """What one layer stores, and how much of it is open after an update."""

    layer: SparseLinear
    stored: Tensor
    """bool ``(tiles,)`` of this shard."""
    shards: int
    schedule: TopologySchedule
    step: int

    def ranges(self, count: int) -> list[tuple[Tensor, int]]:
        """What each of ``count`` equal ranges stores, and how many tiles of it are open after the update.

        Raises:
            ConfigError: a schedule of one's own gives no density.
        """
        layer = self.layer
        now = self.schedule.density(self.step, layer.configured_density, layer.last_density)
        tiles = layer.grid.tiles * self.shards
        return [
            (part, open_tiles(int(part.sum()), tiles, layer.configured_density, now))
            for part in self.stored.chunk(count)
        ]


@dataclass(frozen=True)
class Stored:
    """The stored tiles of a layer before an update, of which criteria see the open ones alone."""

    mask: Tensor
    """bool ``(tiles,)``: what is stored."""
    open_bits: Tensor
    """Packed mask of what is open."""
    open: Tensor | None
    """bool ``(active,)``: which of the stored tiles that are; None = all."""

    @classmethod
    def of(cls, layer: SparseLinear, bits: Tensor, births: Tensor) -> Stored:
        """Those of ``layer`` with the mask ``bits`` and a birth code per tile."""
        mask = unpack(bits, layer.grid.tiles)
        if not layer.falls:
            return cls(mask, bits, None)
        stays = (births != CLOSED).to(bits.device)
        opened = mask.clone()
        opened[mask.nonzero().view(-1)[~stays]] = False
        return cls(mask, pack(opened), stays)

    def opened(self, given: Tensor) -> Tensor:
        """Those of ``given`` ``(active, ...)`` that belong to open tiles."""
        return given if self.open is None else given[self.open.to(given.device)]

    def opened_of(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What criteria need, without that of closed tiles."""
        return {name: one if name in PER_TILE else self.opened(one) for name, one in given.items()}


def layer_digest(layer: SparseLinear, bits: Tensor) -> str:
    """Digest of a layer's mask and of which stored tiles are closed."""
    return digest(bits if layer.closed is None else torch.cat([bits.cpu(), layer.closed.cpu()]))


@torch.no_grad()
def read_closed(layers: Mapping[str, SparseLinear], store: ParameterStore, falls: bool, driven: bool) -> None:
    """Tell ``layers`` which of their tiles are closed, by the birth codes of ``store``. Collective.

    Args:
        falls: whether density falls in this run, be it in layers of other ranks.
        driven: whether the state is one that topology updates have moved, or were to move.

    Raises:
        ConfigError: the state is that of a run whose density does not fall, or the other way round.
    """
    ages = store.optimizer.ages
    if ages.closes and not falls:
        raise ConfigError(
            "the optimizer's state is that of a run whose density falls, with tiles that are closed; say"
            " initial_density and density as in that run, or begin with a new optimizer"
        )
    if not falls:
        return
    ageless = any("birth" not in store.fragment(layer.values).state for layer in layers.values())
    if ages.births[CLOSED] is not None or ageless or (driven and not ages.closes):
        raise ConfigError(
            "the optimizer's state is that of a run of constant density, which may hold weights of every age; begin"
            " with a new optimizer where density is to fall"
        )
    ages.closes = True
    for layer in layers.values():
        if not layer.falls:
            continue
        fragment = store.fragment(layer.values)
        births = gather(fragment.state["birth"], fragment.range, fragment.total, store.group)
        layer.close((births[:: layer.grid.tile_size] == CLOSED).to(layer.values.device))


def follow_density(layers: Mapping[str, SparseLinear], store: ParameterStore, schedule: TopologySchedule) -> None:
    """Give each group of falling density the learning-rate factor of what is open in its layers now, and layers that
    were frozen at updates one of their own."""
    optimizer, exponent = store.optimizer, schedule.config.lr_exponent
    optimizer.own_factors.clear()
    for group in optimizer.param_groups:
        if "densities" not in group:
            continue
        members = members_of(group, layers)
        behind = [layer for layer in members if _is_behind(layer, schedule, optimizer.steps_done)]
        if not store.skips_frozen or len(behind) == len(members):
            behind = []  # an engine freezes nothing, and has one factor for each group
        for layer in behind:
            now = open_density([layer], schedule, optimizer.steps_done)
            optimizer.own_factors[layer.values] = density_factor(now, exponent)
        if followers := [layer for layer in members if all(layer is not other for other in behind)]:
            group["densities"] = (followers[0].configured_density, followers[0].last_density)
            now = open_density(followers, schedule, optimizer.steps_done)
            group["lr_factor"] = density_factor(now, exponent)


def members_of(group: Mapping[str, Any], layers: Mapping[str, SparseLinear]) -> list[SparseLinear]:
    """The layers of an optimizer's group of falling density; by their densities where an engine holds partitions."""
    held = {id(param) for param in group["params"]}
    ends = tuple(group["densities"])
    falling = [layer for layer in layers.values() if layer.falls]
    return [layer for layer in falling if id(layer.values) in held] or [
        layer for layer in falling if (layer.configured_density, layer.last_density) == ends
    ]


def open_density(layers: Sequence[SparseLinear], schedule: TopologySchedule, step: int) -> float:
    """Density that is open in ``layers``, of one group: the schedule's, or within more than 1 %, mere rounding, of it
    what is counted, as ``smet.distribution.effective_density`` has it.

    They differ where ranges keep one tile each, and where the schedule was another one up to here.
    """
    first = layers[0].configured_density
    scheduled = schedule.density(step, first, layers[0].last_density)
    counted = first * sum(layer.open_tiles for layer in layers) / max(1, sum(layer.active for layer in layers))
    return scheduled if abs(counted - scheduled) <= 0.01 * scheduled else counted


def density_told(layers: Mapping[str, SparseLinear], schedule: TopologySchedule, step: int) -> float:
    """The same over all ``layers`` whose density is to fall, beside the density of the settings."""
    falling = [layer for layer in layers.values() if layer.final_density is not None]
    scheduled = schedule.density(step)
    if not falling:
        return scheduled
    tiles = sum(layer.grid.tiles for layer in falling)
    shares = [layer.configured_density * layer.open_tiles / max(1, layer.active) for layer in falling]  # of all shards
    counted = sum(share * layer.grid.tiles for share, layer in zip(shares, falling, strict=True)) / tiles
    return scheduled if abs(counted - scheduled) <= 0.01 * scheduled else counted


def stays(density: float, schedule: TopologySchedule, step: int) -> list[str]:
    """A line about a density that was to fall further, where a run goes on after ``step`` and no update follows."""
    if step == 0 or not schedule.config.falls or schedule.next_due(step) is not None:
        return []
    ended = density <= 1.01 * schedule.config.density
    return [] if ended else [f"density stays at {density:.3g}: no topology update follows"]


def _is_behind(layer: SparseLinear, schedule: TopologySchedule, step: int) -> bool:
    """Whether its open tiles are others than an update up to ``step`` leaves, be it in one range or in many."""
    first = layer.configured_density
    share = layer.active * schedule.density(step, first, layer.last_density) / first
    return abs(layer.open_tiles - share) > max(schedule.config.topology_ranges, 0.01 * share)
