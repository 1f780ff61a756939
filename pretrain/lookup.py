"""What a run file names besides the program's own tables, looked up before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pretrain.callbacks.table import classes_of
from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.formula import formula_of
from smet import criteria
from smet.compute import backend
from smet.errors import require_all


def _criteria(config: RunConfig) -> None:
    try:
        criteria.require(config.sparsity)
    except ConfigError as error:
        raise ConfigError([f"sparsity.{text}" for text in error.problems]) from error


LOOKUPS: tuple[Callable[[RunConfig], object], ...] = (
    formula_of,
    _criteria,
    lambda config: backend(config.sparsity.compute, "sparsity.compute"),
    classes_of,
)
"""Each raises ``ConfigError`` where a name means nothing."""


def require_found(config: RunConfig) -> None:
    """Look up all that ``config`` names. Imports modules of the user's own.

    Raises:
        ConfigError: with every name that means nothing.
    """
    require_all(partial(look_up, config) for look_up in LOOKUPS)
