"""What a run file names besides the program's own tables, looked up before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pretrain.callbacks.table import classes_of
from pretrain.config import RunConfig
from pretrain.config.names import settings_by_run_file
from pretrain.formula import formula_of
from pretrain.models import family_of
from pretrain.writers import require_there
from smet import criteria
from smet.compute import backend
from smet.errors import require_all


def _criteria(config: RunConfig) -> None:
    with settings_by_run_file():
        criteria.require(config.sparsity)


def _family(config: RunConfig) -> None:
    family = family_of(config.model)
    require_all((lambda: family.model, lambda: family.hf))


LOOKUPS: tuple[Callable[[RunConfig], object], ...] = (
    formula_of,
    _criteria,
    lambda config: backend(config.sparsity.compute, "sparsity.compute"),
    classes_of,
    lambda config: require_there(config.logging.writers),
    _family,
)
"""Each raises ``ConfigError`` where a name means nothing."""


def require_found(config: RunConfig) -> None:
    """Look up all that ``config`` names. Imports modules of the user's own.

    Raises:
        ConfigError: with every name that means nothing.
    """
    require_all(partial(look_up, config) for look_up in LOOKUPS)
