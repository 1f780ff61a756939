"""Run files: YAML with ``base:`` files merged below it and dotted overrides on top.

Layers, weakest first: the files named by ``base`` (recursively, in order), the file itself, the
overrides. A later layer wins key by key; lists are replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pretrain.config.checks import cross_problems
from pretrain.config.optimizer import note_rate_of_other_formula, without_other_formula
from pretrain.config.retired import without_retired
from pretrain.config.run import NO_DATACLASS, RunConfig
from pretrain.config.schema import CallbackConfig
from pretrain.config.typed import build, coerce, problems_of
from pretrain.config.yaml_text import parse_yaml, read_yaml
from pretrain.errors import ConfigError, nearest
from pretrain.models import DEFAULT, family, known_family
from pretrain.paths import expanded, expanded_within, resolved
from smet.config import PRESETS, SmetConfig


def load_config(path: str | Path, overrides: Iterable[str] = (), world_size: int | None = None) -> RunConfig:
    """Read a run file, merge its bases and the overrides (``section.key=value``), and check it all.

    ``world_size``, where it is known, lets a layout that cannot work be answered with those that can.

    Raises:
        ConfigError: a file is missing or no YAML, or with every problem of the settings at once.
    """
    problems: list[str] = []
    layers: list[Layer] = []
    below = _read_with_bases(_expanded(str(path), "run file"), (), layers)
    above = _from_overrides(overrides, problems)
    merged = merge(below, above)
    note_rate_of_other_formula([*(layer.content.get("optimizer") for layer in layers), above.get("optimizer")])
    return _checked(merged, problems, (named_family(merged),), world_size)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one file, or one override, says by itself."""

    content: dict[str, Any]
    path: Path | None = None
    """None = an override."""


def layers_of(path: str | Path, overrides: Iterable[str] = ()) -> tuple[list[Layer], dict[str, Any]]:
    """The layers that ``load_config`` merges, the weakest first, and the plain settings that they make together.

    Raises:
        ConfigError: a file is missing or no YAML, or an override is malformed.
    """
    layers: list[Layer] = []
    merged = _read_with_bases(_expanded(str(path), "run file"), (), layers)
    layers += [Layer(from_overrides([text])) for text in overrides]
    return layers, merge(merged, from_overrides(overrides))


def from_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Plain settings of overrides (``section.key=value``), the last the strongest.

    Raises:
        ConfigError: with every one that is malformed.
    """
    problems: list[str] = []
    found = _from_overrides(overrides, problems)
    if problems:
        raise ConfigError(problems)
    return found


def leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested mappings; empty ones are values."""
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def names_given(overrides: Iterable[str]) -> set[str]:
    """Dotted names of the keys that overrides set; what is null is left at its default.

    Raises:
        ConfigError: an override is malformed.
    """
    return {name for name, value in leaves(from_overrides(overrides)) if value is not None}


def config_from_dict(given: dict[str, Any], families: Collection[str] = ()) -> RunConfig:
    """Build and check the settings from plain dicts, as ``RunConfig.to_dict`` makes them.

    Args:
        families: model families of one's own (``package.module:FAMILY``) that may be imported. Settings from
            elsewhere, such as a checkpoint's, import none that the run's own file does not name.

    Raises:
        ConfigError: with every problem at once.
    """
    return _checked(given, [], families)


def named_family(given: dict[str, Any]) -> str:
    """The model family that plain settings name, or the default."""
    model = given.get("model")
    name = model.get("family") if isinstance(model, dict) else None
    return DEFAULT if name is None else name


def merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return ``lower`` with ``upper`` on top, mapping by mapping.

    A layer that names a ``sparsity.method`` also outdoes what lower layers say about that method's keys, and one
    with ``data.train`` a ``data.curriculum`` below it, and the other way round. One that names another
    ``optimizer.name`` outdoes the options of the formula below it, and says which.
    """
    method = upper.get("sparsity", {}).get("method") if isinstance(upper.get("sparsity"), dict) else None
    if method is not None and isinstance(lower.get("sparsity"), dict):
        lower = {**lower, "sparsity": _without_presets(lower["sparsity"], method)}
    if isinstance(lower.get("data"), dict) and isinstance(upper.get("data"), dict):
        lower = {**lower, "data": _without_rivals(lower["data"], upper["data"])}
    if isinstance(lower.get("optimizer"), dict) and isinstance(upper.get("optimizer"), dict):
        lower = {**lower, "optimizer": without_other_formula(lower["optimizer"], upper["optimizer"])}
    return _laid_over(lower, upper)


def _laid_over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """``lower`` with ``upper`` on top key by key, both of one layer: nothing outdoes anything."""
    merged = dict(lower)
    for key, value in upper.items():
        old = merged.get(key)
        merged[key] = _laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _without_rivals(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """The data section ``lower`` without what ``upper`` trains on instead."""
    rivals = {"train": "curriculum", "curriculum": "train"}
    return {key: value for key, value in lower.items() if not upper.get(rivals.get(key, ""))}


def _without_presets(sparsity: dict[str, Any], method: Any) -> dict[str, Any]:
    """The keys that neither the new method sets, nor the old one's preset had set."""
    new = PRESETS.get(method, {}) if isinstance(method, str) else {}
    old_method = sparsity.get("method")
    old = PRESETS.get(old_method, {}) if isinstance(old_method, str) else {}
    return {k: v for k, v in sparsity.items() if k not in new and not (k in old and old[k] == v)}


def _read_with_bases(path: Path, parents: tuple[Path, ...], layers: list[Layer] | None = None) -> dict[str, Any]:
    """The file merged over its bases; each that was read is added to ``layers``."""
    place = resolved(path)
    if place in parents:
        chain = " -> ".join(file.name for file in (*parents[parents.index(place) :], place))
        raise ConfigError(f"base files form a cycle, expected a chain that ends: {chain}")
    content = read_yaml(path)
    bases = content.pop("base", None)
    bases = [] if bases is None else bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path} has base {bases}, expected a path or a list of paths relative to the file")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _read_with_bases(beside(path, base), (*parents, place), layers))
    if layers is not None:
        layers.append(Layer(content, path))
    return merge(merged, content)


def beside(path: Path, base: str) -> Path:
    """The file that the file ``path`` names as its base: relative to its folder.

    Raises:
        ConfigError: it names no path.
    """
    return path.parent / _expanded(base, f"{path} base")


def _expanded(text: str, what: str) -> Path:
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise ConfigError(f"{what} is {error}") from None


def _from_overrides(overrides: Iterable[str], problems: list[str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"override '{text}' is malformed, expected section.key=value, such as train.steps=100")
            continue
        if not value.strip():
            problems.append(f"override '{text}' has no value; write {name}=null to leave it at its default")
            continue
        try:
            nested: Any = parse_yaml(value, f"override '{text}'")
        except ConfigError as error:
            torn = value.strip()[0] in "[{" and value.strip()[-1] not in "]}"
            problems += [text + "; quote an override that has spaces in it" * torn for text in error.problems]
            continue
        for key in reversed(keys):
            nested = {key: nested}
        layer = _laid_over(layer, nested)
    return layer


def _checked(
    given: dict[str, Any], problems: list[str], families: Collection[str], world_size: int | None = None
) -> RunConfig:
    """Build every section, then check each by itself and all together; raise everything found."""
    hints = typing.get_type_hints(RunConfig)
    try:
        hints["model"], foreign = known_family(named_family(given), families).config, False
    except ConfigError as error:
        problems += error.problems
        hints["model"], foreign = family(DEFAULT).config, True  # whose keys nobody knows
    problems += _unknown_sections(given, hints)
    sections: dict[str, Any] = {}
    sound: dict[str, Any] = {}
    for name, kind in hints.items():
        if name == "model" and foreign:
            continue
        raw = given.get(name)
        if name == "callbacks":
            sections[name] = _callbacks(raw, kind, problems)
            continue
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            problems.append(f"{name} is {raw!r} ({type(raw).__name__}), expected a mapping of keys")
            continue
        if name == "deepspeed":
            sections[name] = sound[name] = expanded_within(raw, problems, name)
            continue
        section, is_sound = build(kind, _prepared(name, without_retired(name, raw, problems)), name, problems)
        sections[name] = section
        if is_sound:
            sound[name] = section
            problems += problems_of(name, section)
        else:
            problems += _given_and_new(problems_of(name, section), raw, problems)
    problems += cross_problems(sound, world_size)
    if problems:
        raise ConfigError(problems)
    return RunConfig(**sections)


def _callbacks(raw: Any, kind: Any, problems: list[str]) -> tuple[CallbackConfig, ...]:
    """The list of callbacks, of which each may be written as its name."""
    try:
        made: tuple[CallbackConfig, ...] = () if raw is None else coerce(_named(raw), kind, "callbacks", problems)
    except TypeError as mismatch:
        problems.append(f"callbacks is {mismatch}")
        return ()
    problems += [
        text for n, one in enumerate(made) if one.name != "missing" for text in one.problems(f"callbacks[{n}]")
    ]
    return made


def _named(raw: Any) -> Any:
    """A list of things with a name and options, of which each may be written as its name."""
    return [{"name": one} if isinstance(one, str) else one for one in raw] if isinstance(raw, (list, tuple)) else raw


def _prepared(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Short forms written out: a preset's name as its keys, one prefix as a blend of one."""
    if name == "sparsity" and isinstance(raw.get("method"), str):
        return SmetConfig.with_preset(raw)
    if name == "logging" and raw.get("writers") is not None:
        given = raw["writers"]
        return {**raw, "writers": _named([given] if isinstance(given, str) else given)}
    if name == "data":
        return {key: _blends_written_out(key, value) for key, value in raw.items()}
    return raw


def _blends_written_out(key: str, value: Any) -> Any:
    if key in ("train", "validation", "blend") and isinstance(value, str):
        return [{"path": value}]
    if key == "curriculum" and isinstance(value, (list, tuple)):
        return [
            {k: _blends_written_out(k, v) for k, v in stage.items()} if isinstance(stage, dict) else stage
            for stage in value
        ]
    return value


def _given_and_new(own: list[str], raw: dict[str, Any], problems: list[str]) -> list[str]:
    """Of a section with stand-ins, the problems about keys that were given and are not reported yet.

    Items of a list are looked at one by one, unless one of them was left out: then the others have other numbers.
    """
    found = []
    for text in own:
        dotted, bracket, _ = (name := text.split(" ")[0]).partition("[")
        item = name[: name.index("]") + 1] if bracket else dotted
        about = rf"{re.escape(dotted)}(\[\d+\])? is |{re.escape(item)}[\[. ]"
        if dotted.partition(".")[2] in raw and not any(re.match(about, earlier) for earlier in problems):
            found.append(text)
    return found


def _unknown_sections(given: dict[str, Any], known: dict[str, Any]) -> list[str]:
    found = []
    for name in given:
        if name in known:
            continue
        homes = [
            section for section, kind in known.items() if section not in NO_DATACLASS and name in _names(kind)
        ]  # a key written at the top level, where its section was meant
        hint = nearest(str(name), known) or f"; sections: base, {', '.join(known)}"
        if homes:
            hint = f" (did you mean '{homes[0]}.{name}'?)"
        found.append(f"{name} is not a known section{hint}")
    return found


def _names(kind: Any) -> set[str]:
    return {part.name for part in dataclasses.fields(kind)}
