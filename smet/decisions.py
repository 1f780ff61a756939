"""What a topology update replaces in one layer: criteria asked, answers looked at, ranks compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smet import criteria
from smet.agreement import fingerprint, raise_together
from smet.balance import beyond_first, uneven
from smet.config import SmetConfig
from smet.criteria.sites import Site
from smet.errors import ConfigError
from smet.gradual import PER_TILE, Room
from smet.mask import TileGrid, unpack
from smet.schedule import TopologySchedule
from smet.swaps import swapped
from smet.topology import Moves, TopologyChange, joined, prune, replaced, smallest

SCHEDULED = ("prune_schedule", "density_schedule")
"""Settings that name schedules."""


class Decider:
    """Prune criterion and growth of one run. Its decisions are pure functions of what is given.

    Args:
        config: names them.
        group: ranks that decide alike, over which decisions of functions that are not built in are compared.

    Raises:
        ConfigError: a function cannot be had.
    """

    def __init__(self, config: SmetConfig, group: dist.ProcessGroup | None = None):
        self.config = config
        self.prune, self.grow = criteria.prune_of(config), criteria.grow_of(config)
        self.needed = criteria.update_needs(config)
        self.own = criteria.has_own(config)
        self.towards = config.balance == "towards"
        self.group = group if self.own and config.dynamic else None

    def sites(
        self, layer: str, bits: Tensor, grid: TileGrid, values: Tensor, given: Mapping[str, Tensor],
        numbers: Sequence[int], update: int,
    ) -> list[Site]:  # fmt: skip
        """A layer cut into equal ranges, each of which decides by itself.

        As long as tensor-parallel shards hold whole ranges, the decision does not depend on how many shards there are.

        Args:
            bits: packed mask of ``grid``.
            values: ``(active, tile_size)``.
            numbers: those of the ranges.
        """
        masks = unpack(bits, grid.tiles).chunk(len(numbers))
        counts = [int(mask.sum()) for mask in masks]
        cut = {
            name: whole.to(bits.device).chunk(len(numbers)) if name in PER_TILE else whole.to(bits.device).split(counts)
            for name, whole in given.items()
        }
        return [
            Site(layer=layer, number=number, update=update, seed=self.config.seed, mask=mask, values=part,
                 columns=grid.shape[1], balanced=self.config.is_balanced(grid.tile),
                 given={name: parts[place] for name, parts in cut.items()})
            for place, (number, mask, part)
            in enumerate(zip(numbers, masks, values.to(bits.device).split(counts), strict=True))
        ]  # fmt: skip

    def decide(
        self, sites: Sequence[Site], fraction: float, protected: Tensor | None = None, room: Room | None = None
    ) -> TopologyChange:
        """Replace ``floor(fraction * active tiles)`` of each range. Collective where own functions are compared.

        Fewer are replaced where fewer are inactive or unprotected. Where density falls, as many more are pruned.

        Args:
            protected: bool ``(active,)`` of the layer; these are not pruned, unless density could not fall otherwise.
            room: what is stored, and how much of it may be open; None = all of it, which are the active tiles.

        Raises:
            ConfigError: a function that is not built in fails, or gives what is no answer; on every rank.
            MaskMismatchError: it decides differently on different ranks; on every rank.
        """
        counts = [site.values.shape[0] for site in sites]
        shields = [None] * len(sites) if protected is None else protected.split(counts)
        failure, change = None, None
        try:
            rooms = [(None, n) for n in counts] if room is None else room.ranges(len(sites))
            pieces = [self._range(site, fraction, shield, stored, open_after)
                      for site, shield, (stored, open_after) in zip(sites, shields, rooms, strict=True)]  # fmt: skip
            change = joined(
                [piece for piece, _ in pieces], unmoved=sum(stay for _, stay in pieces),
                uneven=sum(uneven(piece[0], sites[0].columns) for piece, _ in pieces) if self.towards else 0,
            )  # fmt: skip
        except (Exception, SystemExit) as error:
            if not self.own:
                raise
            failure = error
        if self.own:
            self._compare(sites[0].layer, change, failure, sites[0].mask.device)
        assert change is not None
        return change

    def fraction(self, schedule: TopologySchedule, step: int, device: torch.device) -> float:
        """Fraction of active tiles to replace at the update after ``step``. Collective where own functions are
        compared.

        Raises:
            ConfigError: a schedule that is not built in fails, gives no fraction, or another one on another rank; on
                every rank.
        """
        failure, found = None, [0.0, 0.0]
        try:
            found = [schedule.prune_fraction(step), schedule.density(step)]
        except ConfigError as error:
            failure = error
        self.require_none_failed(failure, device)
        if self.group is None:
            return found[0]
        both = torch.tensor([*found, *(-one for one in found)], dtype=torch.float64, device=device)
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
        for setting, most, least in zip(SCHEDULED, both[:2].tolist(), (-both[2:]).tolist(), strict=True):
            if most != least:
                raise ConfigError(
                    f"{setting} '{getattr(self.config, setting)}' gives {least:g} to {most:g} on the ranks at step"
                    f" {step}; make it a function of what it is given alone"
                )
        return found[0]

    def require_none_failed(self, failure: ConfigError | None, device: torch.device) -> None:
        """Raise on every rank where the schedule failed on one. Collective where own functions are compared.

        Raises:
            ConfigError: ``failure``, or that of another rank.
        """
        failed = torch.tensor(float(failure is not None), device=device)
        if self.group is not None:
            dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self.group)
        if failed:
            raise_together(failure, self.group)

    def _range(
        self, site: Site, fraction: float, protected: Tensor | None, stored: Tensor | None, open_after: int
    ) -> tuple[Moves, int]:
        """What is replaced in one range, so that ``open_after`` tiles of it are active, and how many tiles stay for
        want of a place that keeps the degrees."""
        active, tiles = site.values.shape[0], site.mask.numel()
        pruned = torch.zeros(active, dtype=torch.bool, device=site.mask.device)
        grown_at = torch.zeros(0, dtype=torch.int64, device=site.mask.device)
        fewer, more = max(0, active - open_after), max(0, open_after - active)
        count = min(int(fraction * (active - fewer)), tiles - active - more)
        if count + fewer > 0:
            scores = self.prune(site.copied() if self.own else site)
            if self.own:
                require_scores(f"prune '{self.config.prune}'", site, scores)
            if self.towards:
                scores = beyond_first(scores, site.mask, site.columns)
            pruned = prune(scores, count + fewer, protected)
            if (missing := fewer - int(pruned.sum())) > 0:  # protection never keeps density from falling
                left = (~pruned).nonzero().view(-1)
                pruned[left[smallest(scores[left], missing)]] = True
            if site.balanced:  # density that falls is not
                return self._exchange(site, pruned)
        if (growing := int(pruned.sum()) - fewer + more) > 0:
            grown_at = self._places(site, growing)
        return replaced(site.mask, pruned, grown_at, stored), 0

    def _exchange(self, site: Site, pruned: Tensor) -> tuple[Moves, int]:
        """Replace ``pruned`` by tiles in the same rows and columns, or some that have too few; those that the growth
        prefers go first."""
        inactive = site.inactive.nonzero().view(-1)
        preferred = None
        if (by := getattr(self.grow, "by", None)) is not None:
            preferred = inactive[site.given[by][inactive].argsort(descending=True, stable=True)]
        elif self.grow is not criteria.GROW["random"]:
            preferred = self._places(site, int(pruned.sum()))
        rng = site.generator("swap")
        pruned, grown_at, stay = swapped(site.mask, site.columns, pruned, rng, preferred, self.towards)
        return replaced(site.mask, pruned, grown_at), stay

    def _places(self, site: Site, count: int) -> Tensor:
        places = self.grow(site.copied() if self.own else site, count)
        if self.own:
            require_places(f"growth '{self.config.growth}'", site, places, count)
        return places

    def _compare(
        self, layer: str, change: TopologyChange | None, failure: BaseException | None, device: torch.device
    ) -> None:
        """Let all ranks go on with one decision, or none. Without it they would wait in different collectives."""
        state = torch.tensor([failure is not None, 0, 0], dtype=torch.int64)
        if change is not None:
            state[1:] = fingerprint([change.bits, change.kept, change.grown, change.closed]).cpu()
        if self.group is not None:
            both = torch.cat([state, -state]).to(device)
            dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
            most, least = both[:3].cpu(), -both[3:].cpu()
        else:
            most = least = state
        names = f"prune '{self.config.prune}' and growth '{self.config.growth}'"
        if failure is not None and not isinstance(failure, ConfigError):
            told = ConfigError(f"{names} fail on layer {layer} ({type(failure).__name__}: {failure})")
            told.__cause__, failure = failure, told
        if most[0]:
            raise_together(failure, self.group)
        if not torch.equal(most[1:], least[1:]):
            raise ConfigError(
                f"{names} decide differently on the ranks of layer {layer}; make them functions of what they are given"
                " alone, and draw random numbers from site.generator(...)"
            )


def require_scores(what: str, site: Site, scores: Any) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        ConfigError: another shape than one number per active tile, no real numbers, or NaN from finite weights.
    """
    expected = (site.values.shape[0],)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected or not scores.is_floating_point():
        raise ConfigError(
            f"{what} gives {_shown(scores)} for layer {site.layer}, expected floating-point scores of shape {expected}"
        )
    if bool(scores.isnan().any()) and not bool(site.values.isnan().any()):
        raise ConfigError(f"{what} gives {int(scores.isnan().sum())} NaN among {expected[0]} scores of {site.layer}")


def require_places(what: str, site: Site, places: Any, count: int) -> None:
    """Refuse places where nothing can be grown.

    Raises:
        ConfigError: not ``count`` different positions of inactive tiles.
    """
    if not isinstance(places, Tensor) or tuple(places.shape) != (count,) or places.dtype != torch.int64:
        raise ConfigError(
            f"{what} gives {_shown(places)} for layer {site.layer}, expected int64 positions of shape {(count,)}"
        )
    tiles = site.mask.numel()
    if count and (int(places.min()) < 0 or int(places.max()) >= tiles):
        raise ConfigError(f"{what} grows beyond the {tiles} tiles of layer {site.layer}")
    if bool(site.mask[places].any()):
        raise ConfigError(f"{what} grows {int(site.mask[places].sum())} active tiles of layer {site.layer} again")
    if places.unique().numel() < count:
        raise ConfigError(f"{what} grows a tile of layer {site.layer} twice")


def _shown(found: Any) -> str:
    return f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
