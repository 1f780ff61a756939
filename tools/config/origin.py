"""Where each value of a resolved run file comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, load_config
from pretrain.config.load import Layer, layers_of, leaves
from pretrain.config.yaml_text import key_lines
from pretrain.errors import ConfigError
from pretrain.run_folder.reader import SETTINGS
from smet.config import PRESETS

from .keys import REQUIRED, all_keys


@dataclass(frozen=True)
class Origin:
    """What gave a value."""

    kind: str
    """``file``, ``base``, ``override``, ``preset`` (of ``sparsity.method``), ``default``, or ``derived``."""
    file: str = ""
    line: int = 0
    """Counted from 1; 0 = of no file."""
    given: Any = None
    """What was written, where something else follows from it."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else self.kind
        place = "preset of sparsity.method" if self.kind == "preset" else place
        text = f"base {place}" if self.kind == "base" else place
        return text if self.given is None else f"derived from {self.given} ({text})"


@dataclass(frozen=True)
class Resolved:
    """A run file as it is understood."""

    path: Path
    config: RunConfig
    values: dict[str, Any]
    """Dotted name to plain value; lists are values."""
    origins: dict[str, Origin]


def run_file(path: Path) -> Path:
    """``path``, or the run file in it where it is a run folder.

    Raises:
        ConfigError: it is a folder without one.
    """
    if not path.is_dir():
        return path
    if not (path / SETTINGS).is_file():
        raise ConfigError(f"{path} is a folder without {SETTINGS}, expected a run file or the folder of a run")
    return path / SETTINGS


def resolve(path: Path, overrides: Iterable[str] = ()) -> Resolved:
    """Load a run file, or that of a run folder, and find out what gave each value.

    Raises:
        ConfigError: as ``load_config``.
    """
    file, overrides = run_file(path), list(overrides)
    config = load_config(file, overrides)
    layers, merged = layers_of(file, overrides)
    values = dict(leaves(config.to_dict()))
    return Resolved(file, config, values, _Search(layers, merged, config).all(values))


class _Search:
    def __init__(self, layers: list[Layer], merged: dict[str, Any], config: RunConfig):
        self.layers, self.merged = layers, merged
        self.last_file = next(layer for layer in reversed(layers) if layer.path is not None)
        self.lines = {layer.path: key_lines(layer.path) for layer in layers if layer.path is not None}
        self.defaults = {key.name: key.default for key in all_keys()}
        self.preset = PRESETS.get(config.sparsity.method or "", {})

    def all(self, values: dict[str, Any]) -> dict[str, Origin]:
        return {name: self.origin(name, value) for name, value in values.items()}

    def origin(self, name: str, value: Any) -> Origin:
        given = _at(self.merged, name)
        if given is None:
            return self._of_none(name, value)
        # What a stronger layer outdoes is no longer in ``merged``; what is there comes from the last that says it.
        layer = next(layer for layer in reversed(self.layers) if _at(layer.content, name) is not None)
        found = self._in(layer, name)
        numbers = isinstance(given, (int, float)) and isinstance(value, (int, float))
        return replace(found, given=given) if numbers and given != value else found

    def _in(self, layer: Layer, name: str) -> Origin:
        if layer.path is None:
            return Origin("override")
        lines, place = self.lines[layer.path], name
        while place not in lines and "." in place:  # what a list or a short form stands for
            place = place.rpartition(".")[0]
        kind = "file" if layer is self.last_file else "base"
        return Origin(kind, os.path.normpath(layer.path), lines.get(place, 0))

    def _of_none(self, name: str, value: Any) -> Origin:
        """Nothing was said: the method's preset, the default, or what follows from other values."""
        section, _, key = name.partition(".")
        if section == "sparsity" and key in self.preset and self.preset[key] == value:
            return Origin("preset")
        default = self.defaults.get(name, REQUIRED)
        default = list(default) if isinstance(default, tuple) else default
        return Origin("default" if default == value or default is REQUIRED else "derived")


def _at(plain: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(plain, dict) or key not in plain:
            return None
        plain = plain[key]
    return plain
