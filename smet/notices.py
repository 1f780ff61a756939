"""Settings that are allowed and probably not meant: one line each, for whoever starts the run to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace

from smet.config import SmetConfig
from smet.criteria import GROW, MASKS, PRUNE
from smet.criteria.needs import declared
from smet.distribution import MAX_FACTOR, active_tiles, effective_density
from smet.errors import ConfigError
from smet.schedule import TopologySchedule

OF_UPDATES = (
    "prune", "prune_schedule", "prune_start", "prune_end", "growth", "protect_rounds", "topology_ranges",
    "bias_correction", "update_interval", "stop_fraction",
)  # fmt: skip
"""Settings that decide something only where the topology changes."""
OF_SPARSE_LAYERS = (
    "distribution", "balance", "permute", "mask_init", "mask_residency", "lr_exponent", "fan_in_init", "seed",
)  # fmt: skip
"""Those that decide something only where a weight is inactive."""


def idle_notices(config: SmetConfig, prefix: str = "") -> list[str]:
    """Settings that were given and decide nothing beside the others, one line for each reason.

    What is given as it would be anyway is not told: nothing would change without it.

    Args:
        prefix: of the settings' names, where the caller has others.
    """
    plain = SmetConfig(method=config.method, block=config.block)
    by = {name: getattr(config, name) for name in ("block", "balance", "initial_density")}
    if config.prune_start == (default := SmetConfig(method=config.method, **by).prune_start):  # which goes by these
        plain.prune_start = default
    found, told = list[str](), set[str]()
    given = [part.name for part in fields(config) if getattr(config, part.name) != getattr(plain, part.name)]
    for reason, idle in _idle(config):
        if names := [name for name in given if name in idle and name not in told]:
            found.append(
                f"{', '.join(prefix + name for name in names)} decide{'s' if len(names) == 1 else ''} nothing: {reason}"
            )
            told |= {*names}
    if config.method == "static" and config.dynamic:
        found.append(f"method 'static' is a label only: update_interval is {config.update_interval}, so masks change")
    if config.method == "dense" and config.density < 1.0:
        found.append(f"method 'dense' is a label only: density is {config.density:g}, so weights are left out")
    return found


def _idle(config: SmetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(why, settings that decide nothing), whoever gave them."""
    label = f", as method '{config.method}' has it" if config.method in ("dense", "static") else ""
    balanced = config.is_balanced(config.block)  # by the ranges, and by chance where scores leave a choice
    everywhere = config.warmup_scope == "all"  # then weights that are there from the start are warmed up too
    of_updates = (*OF_UPDATES, *(() if everywhere else ("warmup_steps", "warmup_scope")))
    if (balanced or config.is_permuted) and config.density < 1.0:
        of_updates = tuple(name for name in of_updates if name != "topology_ranges")
    if config.density == 1.0:
        yield f"density is 1{label}, every weight is active", (*OF_SPARSE_LAYERS, *of_updates)
    elif config.update_interval == 0:
        others = tuple(name for name in of_updates if name != "update_interval")
        yield f"update_interval is 0{label}, the masks stay as they are", others
    elif config.stop_fraction == 0:
        others = tuple(name for name in of_updates if name != "stop_fraction")
        yield "stop_fraction is 0, the masks stay as they are", others
    elif config.prune_schedule == "constant":
        yield "prune_schedule 'constant' stays at prune_start", ("prune_end",)
    if not config.falls:
        yield "density does not fall without initial_density", ("density_schedule", "density_end_fraction")
    if not config.is_permuted:
        yield "tiles of 1 x 1 share no features", ("permute",)
    if config.warmup_steps == 0:
        yield "warmup_steps is 0, nothing is warmed up", ("warmup_scope",)
    if config.mask_init in MASKS and declared(MASKS[config.mask_init]):
        yield f"mask_init '{config.mask_init}' keeps the weights that it chooses as they are", ("fan_in_init",)
        if config.is_permuted:  # by the seed, whatever the masks are
            return
        if not config.dynamic:
            yield f"mask_init '{config.mask_init}' draws nothing, and the masks stay as they are", ("seed",)
        elif config.growth in GROW and config.growth != "random" and config.prune in PRUNE and not balanced:
            yield f"mask_init '{config.mask_init}' and growth '{config.growth}' draw nothing", ("seed",)


def layer_notices(
    tiles: Mapping[str, int], densities: Mapping[str, float], config: SmetConfig, least: int = 1
) -> list[str]:
    """What is odd about the layers at these densities.

    Args:
        tiles: layer name to its number of tiles, over all tensor-parallel shards.
        densities: layer name to the density asked for; may name further layers.
        least: tiles that stay active in any case.
    """
    found = []
    active = {name: max(active_tiles(count, densities[name]), min(least, count)) for name, count in tiles.items()}
    actual = {name: active[name] / count for name, count in tiles.items()}
    off = [name for name in tiles if abs(actual[name] / densities[name] - 1) > 0.1]
    if off:
        first = off[0]
        found.append(
            f"{_layers(len(off))} too few tiles for the density: {first} has {tiles[first]:,}, of which"
            f" {active[first]} active is {actual[first]:.3g} instead of"
            f" {densities[first]:.3g}"
        )
    exponents = {"lr_exponent": config.lr_exponent, "fan_in_init": 0.5 if config.fan_in_init else 0.0}
    for key, exponent in exponents.items():
        factors = [
            (actual[name] if name in off else effective_density(count, densities[name])) ** -exponent
            for name, count in tiles.items()
        ]
        if factors and max(factors) > MAX_FACTOR:
            what = "learning rates" if key == "lr_exponent" else "initial weights"
            found.append(
                f"{key} would scale {what} by up to {max(factors):,.0f} at these densities; {MAX_FACTOR:g} is the"
                " most that is used"
            )
    return found


def end_notices(
    shapes: Mapping[str, tuple[int, int]], finals: Mapping[str, float], config: SmetConfig, shards: int = 1
) -> list[str]:
    """What is odd about the layers at the densities that theirs fall to.

    Args:
        shapes: layer name to rows and columns of tiles, over all tensor-parallel shards.
        finals: layer name to its density in the end; may name further layers.
        shards: tensor-parallel ones, each of which prunes by itself.
    """
    if not finals:
        return []
    least = max(config.topology_ranges, shards)
    tiles = {name: rows * cols for name, (rows, cols) in shapes.items()}
    found = layer_notices(tiles, finals, replace(config, fan_in_init=False), least)
    if config.block != (1, 1):
        last = {name: max(active_tiles(count, finals[name]), least) for name, count in tiles.items()}
        lost = {name: [max(0, side - last[name]) for side in shape] for name, shape in shapes.items()}
        if poor := [name for name, sides in lost.items() if any(sides)]:
            rows, cols = (sum(sides) for sides in zip(*lost.values(), strict=True))
            found.append(
                f"at least {rows:,} rows and {cols:,} columns of tiles have no active tile, in {len(poor)} of"
                f" {len(lost)} layers (in {poor[0]}: {lost[poor[0]][0]:,} and {lost[poor[0]][1]:,}): what they compute"
                " or read is lost"
            )
    return [f"in the end, at density {config.density:g}: {line}" for line in found]


def _layers(count: int) -> str:
    return "1 layer has" if count == 1 else f"{count} layers have"


def tell_of_run(config: SmetConfig, total_steps: int, tell: Callable[[str], object]) -> ConfigError | None:
    """``tell`` all of ``run_notices``. A schedule that fails, maybe on this rank alone, is handed back: all ranks have
    to learn of it."""
    try:
        for notice in run_notices(config, total_steps):
            tell(notice)
    except ConfigError as error:
        return error
    return None


def _fractions(schedule: TopologySchedule) -> list[float]:
    """Prune fractions over the steps at which the topology may change, from the first to the last."""
    return [schedule.prune_fraction(round(schedule.last_step * part / 100)) for part in range(101)]


def still_notices(active: Mapping[str, int], config: SmetConfig, total_steps: int) -> list[str]:
    """Which layers no update of the run can change, since fractions of tiles are rounded down.

    Args:
        active: tiles of each layer among which an update decides: those of one range.
    """
    schedule = TopologySchedule(config, total_steps)
    if not config.dynamic or config.falls or schedule.last_step < config.update_interval:
        return []
    largest = max(_fractions(schedule))
    keeps = config.is_balanced(config.block) and config.balance != "towards"
    fewest = 2 if keeps else 1  # balanced tiles exchange columns: one alone cannot
    still = [name for name, count in active.items() if int(largest * count) < fewest]
    if not still or largest == 0.0:
        return []
    return [
        f"the topology of {len(still)} of {len(active)} layers never changes: an update replaces at most"
        f" {largest:g} (prune_start) of the {active[still[0]]:,} tiles active in {still[0]}, rounded down, and"
        f" {'two' if fewest == 2 else 'one'} are the fewest; a larger prune_start or smaller tiles change that"
    ]


def run_notices(config: SmetConfig, total_steps: int) -> list[str]:
    """What is odd about the schedule in a run of ``total_steps`` optimizer steps.

    Raises:
        ConfigError: a schedule of one's own fails, or gives what it cannot mean.
    """
    if config.update_interval == 0 or config.density == 1.0:
        return []
    schedule, found = TopologySchedule(config, total_steps), list[str]()
    falling = _falling_notices(schedule) if config.falls else []
    last = schedule.last_step
    if last < config.update_interval:
        stays = f", and density stays {config.first_density:g}" if config.falls else ""
        return [
            f"the topology never changes{stays}: the first update is due after step {config.update_interval}"
            f" (update_interval) and none happens after step {last} (stop_fraction {config.stop_fraction:g} of"
            f" {total_steps} steps)"
        ]
    fractions = _fractions(schedule)
    if max(fractions) == 0.0:
        return falling if config.falls else ["the topology never changes: prune_start and prune_end are 0"]
    if max(fractions) > 0.5 + 1e-9:
        found.append(
            f"an update replaces up to {max(fractions):.0%} of a layer's active weights by zeros (prune_start)"
        )
    if fractions[-1] > fractions[0] + 1e-9:
        found.append(f"the prune fraction rises, from {fractions[0]:g} to {fractions[-1]:g} (prune_end)")
    if config.warmup_steps > total_steps:
        found.append(
            f"no regrown weight reaches its full rate: warmup_steps is {config.warmup_steps}, the run has"
            f" {total_steps} steps"
        )
    return found + falling


def _falling_notices(schedule: TopologySchedule) -> list[str]:
    """What is odd about a density that falls; a schedule of one's own is asked at each update.

    Raises:
        ConfigError: it fails, gives no density between the two, or does not end at the final one.
    """
    config, found = schedule.config, []
    steps = range(0, schedule.density_end + 1, config.update_interval)
    densities = [schedule.density(step) for step in steps]
    schedule.require_end()
    if any(later > earlier + 1e-9 for earlier, later in zip(densities, densities[1:], strict=False)):
        found.append("density rises between updates (density_schedule): closed tiles are grown again")
    if len(densities) == 2:
        found.append(
            f"density falls at once, from {config.first_density:g} to {config.density:g} after step"
            f" {schedule.density_end}; for less at a time lower update_interval, or raise density_end_fraction"
        )
    return found
