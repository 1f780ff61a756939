"""Code of a family's own is asked here: what fails in it is one line that says where, not a traceback through ours."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from smet.errors import ConfigError, UserError

T = TypeVar("T")


def answer(what: str, question: Callable[[], T]) -> T:
    """What ``question`` returns.

    Args:
        what: names it, for messages.

    Raises:
        ConfigError: it raises something that is not meant for users.
    """
    try:
        return question()
    except UserError:
        raise
    except Exception as error:  # whatever a module of somebody else raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{what} fails in {place.filename}:{place.lineno} ({text}); mend it there") from error


def part(package: str, name: str, offers: Sequence[str]) -> ModuleType:
    """The module ``name`` of a family's folder.

    Args:
        package: the folder.
        offers: what is expected in there.

    Raises:
        ConfigError: it is not there, fails while it is imported, or lacks something.
    """
    try:
        module = import_module(f"{package}.{name}")
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{package}.{name} cannot be imported ({text}); a model family is a folder with config.py, inventory.py,"
            " model.py and hf.py, and its FAMILY says package=__name__ (docs/families.md)"
        ) from error
    if lacking := [offer for offer in offers if not callable(getattr(module, offer, None))]:
        raise ConfigError(
            f"{package}.{name} has no {', '.join(lacking)}, expected {', '.join(offers)} as in"
            f" pretrain/models/llama/{name}.py"
        )
    return module
