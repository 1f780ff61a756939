"""Model families. To add one, write a folder like ``llama`` and a line of ``FAMILIES``, or name your own in the
run file: ``model.family: package.module:FAMILY``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

from pretrain.models.family import Family, FamilyConfig
from pretrain.models.inventory import Inventory
from smet.errors import ConfigError
from smet.named import find, problem
from smet.wanted import Wanted

FAMILIES = {
    "llama": "pretrain.models.llama",
}
"""Name in a run file to the folder, which holds ``FAMILY``."""
DEFAULT = "llama"
_FAMILY = Wanted("a pretrain.models.family.Family", lambda found: isinstance(found, Family))


def family(name: str) -> Family:
    """The family ``name``; one of one's own is imported, so it must be named by whoever started this process.

    Raises:
        ConfigError: there is no such family.
    """
    if name in FAMILIES:
        found: Family = import_module(FAMILIES[name]).FAMILY
        return found
    return find("model.family", name, {}, _FAMILY)


def known_family(name: Any, families: Collection[str] = ()) -> Family:
    """The family that settings name, which may be from elsewhere: only built-in ones, and those of ``families``.

    Raises:
        ConfigError: there is no such family, or it is none of these.
    """
    if (wrong := problem("model.family", name, FAMILIES)) is not None:
        raise ConfigError(wrong)
    if name not in FAMILIES and name not in families:
        raise ConfigError(
            f"model.family is '{name}', code of its own, which is imported only where you name it yourself"
        )
    return family(name)


def family_of(model: FamilyConfig) -> Family:
    """The family of a ``model`` section that exists, so that its module has been imported."""
    return family(model.family)


def inventory_of(model: FamilyConfig) -> Inventory:
    """Which weights the model that ``model`` describes has."""
    return _inventory(_Case(repr(model), model))


@dataclass(frozen=True)
class _Case:
    """Sections are equal where what they say is: the same ones are asked for again and again."""

    key: str
    model: FamilyConfig = field(compare=False)


@lru_cache(maxsize=16)
def _inventory(case: _Case) -> Inventory:
    return family_of(case.model).inventory(case.model)
