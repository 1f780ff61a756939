"""Which layers the name patterns of a ``SmetConfig`` mean. Nothing here needs torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smet.config import SmetConfig

KINDS = ("*embed*", "*norm*")
"""Patterns for what a layer is, not for where it is: they look at its own last name only, so that ``*embed*``
spares ``embed_out`` and not ``embedder.linear1``. Every other pattern looks at the whole dotted path."""


def matching(name: str, patterns: tuple[str, ...]) -> str | None:
    """The first of ``patterns`` that matches the layer of the dotted ``name``, or None."""
    last = name.rpartition(".")[2]
    return next((p for p in patterns if fnmatchcase(last if p in KINDS else name, p)), None)


def selects(name: str, config: SmetConfig) -> bool:
    """Whether ``config.include`` and ``config.exclude`` make the linear layer ``name`` sparse."""
    return unselected(name, config) is None


def unselected(name: str, config: SmetConfig) -> str | None:
    """Why the patterns leave layer ``name`` dense, in words; None where they make it sparse."""
    if matching(name, config.include) is None:
        return "matches no pattern of include"
    pattern = matching(name, config.exclude)
    return None if pattern is None else f"excluded by '{pattern}'"


OLD_TRANSPOSED = ("*o_proj", "*down_proj")
"""Layers whose canonical matrix was ``(in, out)`` in releases whose state dicts did not say so."""
