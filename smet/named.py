"""Things by name: an entry of a table, or ``package.module:name`` of a module of one's own.

A setting that takes names stays text until somebody computes with it. To look a name up can import a module,
which runs its code; to check that it is spelled well (``problem``) imports nothing. So settings that are read
from a checkpoint of someone else can be shown and compared, and only a run that was started with a run file
of one's own looks its names up.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from smet.errors import ConfigError, nearest

T = TypeVar("T")

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: Any) -> bool:
    """Whether ``name`` is spelled as ``package.module:name``."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def problem(what: str, name: Any, table: Mapping[str, Any]) -> str | None:
    """What is wrong with ``name`` as it is spelled, in one sentence that begins with ``what``; imports nothing."""
    if (isinstance(name, str) and name in table) or is_own(name):
        return None
    return f"{what} is '{name}', expected one of {', '.join(table)}, or package.module:name{nearest(str(name), table)}"


def require_fit(what: str, name: str, made: Callable[..., Any], *given: object, **options: Any) -> None:
    """See that ``made``, which ``name`` stands for, takes ``given`` and the ``options`` of the entry ``what``.

    Raises:
        ConfigError: it does not.
    """
    try:
        inspect.signature(made).bind(*given, **options)
    except TypeError as error:
        raise ConfigError(f"{what}.options do not fit {name}: {error}") from None


def find(what: str, name: str, table: Mapping[str, T], fits: Callable[[Any], bool] = callable) -> T:
    """What ``name`` stands for. Imports a module if it is none of ``table``.

    Args:
        what: the setting, for messages.
        fits: whether what was found can be meant.

    Raises:
        ConfigError: there is no such entry, module or attribute, the module breaks while it is imported, or what was
            found does not fit.
    """
    if (wrong := problem(what, name, table)) is not None:
        raise ConfigError(wrong)
    if name in table:
        return table[name]
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # whatever a module of somebody else raises: it is not ours to mend
        raise ConfigError(
            f"{what} is '{name}': module {path} cannot be imported ({type(error).__name__}: {error}); it must lie on"
            " Python's path, such as in the folder of the start"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{what} is '{name}': {path} has no '{attribute}'{nearest(attribute, vars(module))}")
    found = getattr(module, attribute)
    if not fits(found):
        raise ConfigError(f"{what} is '{name}', a {type(found).__name__}, which cannot be used here")
    return found
