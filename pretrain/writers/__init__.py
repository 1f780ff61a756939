"""Where a run's numbers go beside ``metrics.jsonl``: a table of writers, and those of one's own by name.

Nothing of theirs is imported before a run asks for it; what is missing is said before any process starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from pretrain.errors import ConfigError
from pretrain.writers.base import Run, Writer
from smet import named, wanted
from smet.errors import require_all

__all__ = ["WRITERS", "Kind", "Run", "Spec", "Writer", "make", "require_installed", "require_there"]


class Kind(NamedTuple):
    """A writer of the table."""

    address: str
    package: str
    """What it imports, and what pip calls it."""


WRITERS: dict[str, Kind] = {
    "tensorboard": Kind("pretrain.writers.tensorboard:TensorBoardWriter", "tensorboard"),
    "wandb": Kind("pretrain.writers.wandb:WandbWriter", "wandb"),
    "trackio": Kind("pretrain.writers.trackio:TrackioWriter", "trackio"),
}


class Spec(Protocol):
    """An entry of ``logging.writers``."""

    name: str
    options: dict[str, Any]


def what_is_missing(writers: Iterable[Spec]) -> list[str]:
    """A sentence for every writer of the table whose package is not installed here. Imports nothing."""
    return [
        f"logging.writers[{number}] is {spec.name}, and the package {kind.package} is not installed in this Python; "
        f"python -m pip install {kind.package}, or leave the writer out"
        for number, spec in enumerate(writers)
        if (kind := WRITERS.get(spec.name)) is not None and importlib.util.find_spec(kind.package) is None
    ]


def require_installed(writers: Iterable[Spec]) -> None:
    """See that the packages of ``writers`` are installed; imports nothing.

    Raises:
        ConfigError: with every one that is missing.
    """
    if problems := what_is_missing(writers):
        raise ConfigError(problems)


def require_there(writers: Iterable[Spec]) -> None:
    """See that every writer can be made. Imports modules of the user's own, and none of the table's packages.

    Raises:
        ConfigError: a package is missing, a name means nothing, or options do not fit; all that are wrong.
    """
    writers = list(writers)
    checks = [partial(_require_fit, f"logging.writers[{number}]", spec) for number, spec in enumerate(writers)]
    require_all((partial(require_installed, writers), *checks))


def _require_fit(where: str, spec: Spec) -> None:
    maker = _maker(where, spec.name)
    wanted.require_fit(where, spec.name, maker, None, **spec.options)
    if isinstance(maker, type):
        wanted.require_methods(where, spec.name, maker, Writer)


def _makes_one(found: object) -> bool:
    """Whether it is a writer's class, or some function, of which nobody knows what it gives before it is called."""
    return issubclass(found, Writer) if isinstance(found, type) else callable(found)


_MAKER = wanted.Wanted("a class derived from pretrain.writers.Writer, or a function that gives a writer", _makes_one)


def make(spec: Spec, run: Run) -> Writer:
    """The writer that ``spec`` names, open.

    Raises:
        ConfigError: it is none; and whatever its own code raises.
    """
    made = _maker("logging.writers", spec.name)(run, **spec.options)
    if not isinstance(made, Writer):
        raise ConfigError(f"{spec.name} gives a {type(made).__name__}, expected a pretrain.writers.Writer")
    return made


def _maker(where: str, name: str) -> Any:
    kind = WRITERS.get(name)
    return named.find(where, kind.address if kind else name, {}, _MAKER)
