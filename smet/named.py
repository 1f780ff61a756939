"""Things by name: an entry of a table, or ``package.module:name`` of a module of one's own.

A setting that takes names stays text until somebody computes with it. To look a name up can import a module,
which runs its code; to check that it is spelled well (``problem``) imports nothing. So settings that are read
from a checkpoint of someone else can be shown and compared, and only a run that was started with a run file
of one's own looks its names up.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from smet.errors import ConfigError, nearest
from smet.wanted import ANYTHING, Wanted, described

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


def find(what: str, name: str, table: Mapping[str, T], wanted: Wanted = ANYTHING) -> T:
    """What ``name`` stands for. Imports a module if it is none of ``table``.

    Args:
        what: the setting, for messages.
        wanted: what a name that is none of ``table`` can stand for.

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
    if not wanted.fits(found):
        raise ConfigError(f"{what} is '{name}', {described(found)}, expected {wanted.text}")
    return found
