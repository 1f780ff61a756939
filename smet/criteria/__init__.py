"""What decides about topology: tables of plain functions, by the names that settings give them.

    PRUNE      scores of the active tiles at an update; the smallest are pruned
    GROW       which inactive tiles take their places
    SCHEDULES  how the prune fraction, and a density that falls, go from their first to their last values
    MASKS      which tiles are active at first

A name is an entry of the table, or ``package.module:function`` of a module of one's own. A function says by
``@needs(...)`` what it looks at beyond masks and weights (``NEEDS``); planner and controller ask for that and know no
names. Decisions are pure functions of what is given, equal on all ranks that hold the layer.

The tables import no torch: settings are read where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from smet.criteria import grow, masks, prune, schedules
from smet.criteria.needs import AT_START, AT_UPDATE, DENSE, declared, needs
from smet.errors import require_all
from smet.named import find, is_own
from smet.wanted import Wanted, function_of

if TYPE_CHECKING:
    from torch import Tensor

    from smet.config import SmetConfig
    from smet.criteria.sites import Site, Start

    Prune = Callable[[Site], Tensor]
    Grow = Callable[[Site, int], Tensor]
    Mask = Callable[[Start, int], Tensor]
Schedule = Callable[[float, float, float], float]

__all__ = [
    "DENSE", "GROW", "MASKS", "PRUNE", "SCHEDULES", "declared", "grow_of", "has_own", "mask_needs", "mask_of", "needs",
    "prune_of", "require", "schedule_of", "update_needs",
]  # fmt: skip

PRUNE: dict[str, Prune] = {
    "magnitude": prune.magnitude,
    "saliency": prune.saliency,
    "age-protected": prune.age_protected,
}
GROW: dict[str, Grow] = {"random": grow.random, "gradient": grow.gradient, "momentum": grow.momentum}
SCHEDULES: dict[str, Schedule] = {
    "cosine": schedules.cosine,
    "constant": schedules.constant,
    "linear": schedules.linear,
    "wsd": schedules.wsd,
    "cubic": schedules.cubic,
}
MASKS: dict[str, Mask] = {
    "random": masks.random,
    "magnitude": masks.magnitude,
    "snip": masks.snip,
    "synflow": masks.synflow,
}

TABLES: dict[str, dict[str, Any]] = {
    "prune": PRUNE, "growth": GROW, "prune_schedule": SCHEDULES, "density_schedule": SCHEDULES, "mask_init": MASKS,
}  # fmt: skip
"""Setting of ``SmetConfig`` to the table that it names an entry of."""

_PRUNE, _GROW, _MASK = function_of("site"), function_of("site", "count"), function_of("start", "active")
_SCHEDULE = function_of("progress", "start", "end")

F = TypeVar("F", bound=Callable[..., Any])


def prune_of(config: SmetConfig) -> Prune:
    """The prune criterion that ``config`` names. May import its module.

    Raises:
        ConfigError: it cannot be had, or needs what there is not.
    """
    return _found("prune", config.prune, PRUNE, _PRUNE)


def grow_of(config: SmetConfig) -> Grow:
    """The growth that ``config`` names; see ``prune_of``."""
    return _found("growth", config.growth, GROW, _GROW)


def mask_of(config: SmetConfig) -> Mask:
    """The mask initialisation that ``config`` names; see ``prune_of``."""
    return _found("mask_init", config.mask_init, MASKS, _MASK)


def schedule_of(config: SmetConfig, setting: str = "prune_schedule") -> Schedule:
    """The schedule that a setting of ``config`` names; see ``prune_of``."""
    return find(setting, getattr(config, setting), SCHEDULES, _SCHEDULE)


def update_needs(config: SmetConfig) -> frozenset[str]:
    """What prune criterion and growth need, where the topology changes at all. May import their modules."""
    if not config.dynamic:
        return frozenset()
    return declared(prune_of(config)) | declared(grow_of(config))


def mask_needs(config: SmetConfig) -> frozenset[str]:
    """What the mask initialisation needs, where there is anything to choose. May import its module."""
    return declared(mask_of(config)) if config.density < 1.0 else frozenset()


def require(config: SmetConfig) -> None:
    """Look up every name, which may import modules.

    Raises:
        ConfigError: with all that cannot be had.
    """
    falling = partial(schedule_of, setting="density_schedule")
    require_all(partial(look_up, config) for look_up in (prune_of, grow_of, schedule_of, falling, mask_of))


def has_own(config: SmetConfig) -> bool:
    """Whether an update asks a function that is none of this package, whose decisions have to be compared."""
    asked = [config.prune, config.growth, config.prune_schedule, *([config.density_schedule] if config.falls else [])]
    return any(is_own(name) for name in asked)


def _found(setting: str, name: str, table: dict[str, F], wanted: Wanted) -> F:
    function = find(setting, name, table, wanted)
    declared(function, f"{setting} '{name}'", AT_START if setting == "mask_init" else AT_UPDATE)
    return function
