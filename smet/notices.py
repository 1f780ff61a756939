"""Settings that are allowed and probably not meant: one line each, for whoever starts the run to say."""

from __future__ import annotations

from collections.abc import Mapping

from smet.config import SmetConfig
from smet.distribution import MAX_FACTOR, active_tiles, effective_density
from smet.schedule import TopologySchedule


def layer_notices(tiles: Mapping[str, int], densities: Mapping[str, float], config: SmetConfig) -> list[str]:
    """What is odd about the layers at these densities.

    Args:
        tiles: layer name to its number of tiles, over all tensor-parallel shards.
        densities: layer name to the density asked for; may name further layers.
    """
    found = []
    actual = {name: active_tiles(count, densities[name]) / count for name, count in tiles.items()}
    off = [name for name in tiles if abs(actual[name] / densities[name] - 1) > 0.1]
    if off:
        first = off[0]
        found.append(
            f"{_layers(len(off))} too few tiles for the density: {first} has {tiles[first]:,}, of which"
            f" {active_tiles(tiles[first], densities[first])} active is {actual[first]:.3g} instead of"
            f" {densities[first]:.3g}"
        )
    exponents = {"lr_exponent": config.lr_exponent, "fan_in_init": 0.5 if config.fan_in_init else 0.0}
    for key, exponent in exponents.items():
        factors = [effective_density(count, densities[name]) ** -exponent for name, count in tiles.items()]
        if factors and max(factors) > MAX_FACTOR:
            what = "learning rates" if key == "lr_exponent" else "initial weights"
            found.append(
                f"{key} would scale {what} by up to {max(factors):,.0f} at these densities; {MAX_FACTOR:g} is the"
                " most that is used"
            )
    return found


def _layers(count: int) -> str:
    return "1 layer has" if count == 1 else f"{count} layers have"


def run_notices(config: SmetConfig, total_steps: int) -> list[str]:
    """What is odd about the schedule in a run of ``total_steps`` optimizer steps.

    Raises:
        ConfigError: a schedule of one's own fails, or gives no fraction.
    """
    if config.update_interval == 0 or config.density == 1.0:
        return []
    schedule, found = TopologySchedule(config, total_steps), list[str]()
    last = schedule.last_step
    if last < config.update_interval:
        return [
            f"the topology never changes: the first update is due after step {config.update_interval} (update_interval)"
            f" and none happens after step {last} (stop_fraction {config.stop_fraction:g} of {total_steps} steps)"
        ]
    fractions = [schedule.prune_fraction(round(last * part / 100)) for part in range(101)]
    if max(fractions) == 0.0:
        return ["the topology never changes: prune_start and prune_end are 0"]
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
    return found
