"""Density that falls: which stored tiles are closed, and what follows from how many are open.

Storage keeps its first size, so that a parameter stays one vector of one length, whatever holds parts of it. A tile
that was pruned for good stays stored and is *closed*: its birth code is ``CLOSED``, its values and their state are 0,
and it gets no gradient, so that no formula moves it. Codes travel with the optimizer's state, to any layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from smet.distribution import density_factor, open_tiles
from smet.errors import ConfigError
from smet.exchange import gather
from smet.linear import SparseLinear
from smet.mask import digest, pack, unpack
from smet.optim.aged import AgedOptimizer
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
def read_closed(layers: Mapping[str, SparseLinear], store: ParameterStore, falls: bool) -> None:
    """Tell ``layers`` which of their tiles are closed, by the birth codes of ``store``. Collective.

    Args:
        falls: whether density falls in this run, be it in layers of other ranks.

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
    if ages.births[CLOSED] is not None:
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


def follow_density(optimizer: AgedOptimizer, schedule: TopologySchedule) -> None:
    """Give each group of falling density the learning-rate factor of the density that is open now."""
    for group in optimizer.param_groups:
        if (ends := group.get("densities")) is not None:
            now = schedule.density(optimizer.steps_done, *ends)
            group["lr_factor"] = density_factor(now, schedule.config.lr_exponent)
