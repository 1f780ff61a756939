"""Every key of a run file, read from the dataclasses of its sections: kind, default, choices, meaning."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import lru_cache
from typing import Any

from pretrain.changes import DATA, ORDERS, Change
from pretrain.config import RunConfig
from pretrain.config.run import NO_DATACLASS
from pretrain.models import DEFAULT, FAMILIES, family
from smet import compute
from smet.config import PRESETS, SmetConfig
from smet.criteria import TABLES
from smet.fields import choices
from smet.optim import FORMULAS

REQUIRED = object()
"""The default of a key that has none."""

NAMED: dict[str, tuple[str, ...]] = {
    "model.family": tuple(FAMILIES),
    "optimizer.name": tuple(FORMULAS),
    "sparsity.compute": (compute.AUTO, *compute.TABLE),
    **{f"sparsity.{name}": tuple(table) for name, table in TABLES.items()},
}
"""Keys that name an entry of a table, or something of one's own as ``package.module:name``."""


@dataclass(frozen=True)
class Key:
    """One key of a run file."""

    name: str
    """Dotted; ``[]`` behind a list of mappings: ``data.train[].path``."""
    kind: Any
    """The annotation of its field, without ``| None``."""
    optional: bool
    """Whether it may be left without a value."""
    default: Any
    """``REQUIRED`` where there is none."""
    meaning: str
    choices: tuple[Any, ...] = ()
    """The values that it may have; empty: any of its kind."""
    own: bool = False
    """Whether it may name something of one's own too."""

    @property
    def section(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]

    @property
    def on_resume(self) -> str:
        """Whether a run that goes on may change it: in its own folder, in a folder of its own (a branch), or never."""
        key = self.name.partition("[]")[0]
        if key in DATA:
            return "where it lies, not what it holds"
        change = Change(key, None, None)
        branch = "in a branch, unless features are permuted" if key in ORDERS else "in a branch"
        return "yes" if change.allowed else branch if change.fits else "no"


@lru_cache(maxsize=64)
def meanings(cls: type) -> dict[str, str]:
    """Field of a dataclass to the text below it in the source, in one line; those of a class it is derived from too."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                found[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def sections() -> dict[str, Any]:
    """Section of a run file to its dataclass; ``model`` to that of the default family."""
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    return {**hints, "model": family(DEFAULT).config}


def summary(section: str) -> str:
    """What a section is about, in a few sentences."""
    if section in NO_DATACLASS:
        return meanings(RunConfig)[section]
    return " ".join((inspect.getdoc(sections()[section]) or "").split("\n\n")[0].split())


def all_keys() -> list[Key]:
    """Every key, section by section. Of ``deepspeed``, whose keys are DeepSpeed's, there are none."""
    return [key for section in sections() for key in keys_of(section)]


def keys_of(section: str) -> Iterator[Key]:
    """The keys of one section, those of mappings in its lists behind them."""
    kind = sections()[section]
    if section == "callbacks":
        yield from _with_lists(mapping_of(kind), "callbacks[]", set())
    elif section not in NO_DATACLASS:
        yield from _with_lists(kind, section, set())


def _with_lists(cls: Any, place: str, seen: set[Any]) -> Iterator[Key]:
    """The keys of ``cls``, then those of the mappings in its lists, each kind of mapping once."""
    keys = keys_in(cls, place)
    yield from keys
    for key in keys:
        if (inner := mapping_of(key.kind)) is not None and inner not in seen:
            seen.add(inner)
            yield from _with_lists(inner, f"{key.name}[]", seen)


def keys_in(cls: Any, place: str) -> list[Key]:
    """The keys of one dataclass, which stands at ``place``."""
    hints, texts, found = typing.get_type_hints(cls, include_extras=True), meanings(cls), []
    for part in dataclasses.fields(cls):
        name, (kind, optional) = f"{place}.{part.name}", _alone(hints[part.name])
        few: tuple[Any, ...] = choices(cls).get(part.name, NAMED.get(name, ()))
        if cls is SmetConfig and part.name == "method":
            few = tuple(PRESETS)
        found.append(Key(name, kind, optional, _default(part), texts.get(part.name, ""), few, name in NAMED))
    return found


def _alone(kind: Any) -> tuple[Any, bool]:
    """``X`` of ``X | None``, and whether there was a None."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind, False
    return next(part for part in typing.get_args(kind) if part is not type(None)), True


def mapping_of(kind: Any) -> Any:
    """The dataclass of which ``kind`` is a list, or None."""
    parts = typing.get_args(kind)
    return parts[0] if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(parts[0]) else None


def _default(part: dataclasses.Field[Any]) -> Any:
    if part.default is not MISSING:
        return part.default
    return part.default_factory() if part.default_factory is not MISSING else REQUIRED
