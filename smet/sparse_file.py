"""Sparse models in Hugging Face's files: what ``config.json`` says of them, and what a layer's tensors have to be.

docs/sparse-format.md is the specification. Nothing here needs transformers, and tools write and read these files
without it; ``smet.hf`` lets transformers do so.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from smet import loading
from smet.config import SmetConfig
from smet.errors import ConfigError
from smet.linear import SparseLinear
from smet.mask import TileGrid, count_active, has_spare_bits, pack
from smet.named import is_own
from smet.permutation import Order, Orders
from smet.say import say

METHOD = "smet"
"""``quant_method`` in the ``quantization_config`` of ``config.json``: by it transformers finds who loads the model."""
AS_DENSE = "dense"
"""Key of ``config.json``, false: what ``from_pretrained`` is told by the name of something in a model's configuration,
transformers puts there, and so ``from_pretrained(..., dense=True)`` is understood."""
VERSION = 1
VALUES, MASK = "values", "mask"
KEYS = (VALUES, MASK, loading.ORIENTATION, loading.BLOCK, loading.PERMUTATION, *loading.SIDES, loading.SHAPE)
"""Last names of the tensors of a sparse layer, but for its bias; see ``smet.loading`` for all but the first two."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Held:
    """One tensor of the files, by their headers."""

    file: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A sparse layer of the files, whose tensors have fitting types and shapes."""

    name: str
    """In the files."""
    grid: TileGrid
    transposed: bool
    active: int
    entries: Mapping[str, Held]
    """By their last names."""

    @property
    def is_full(self) -> bool:
        """Whether every tile is stored, without a mask."""
        return MASK not in self.entries

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.grid.cols, self.grid.rows) if self.transposed else (self.grid.rows, self.grid.cols)


def description(config: SmetConfig | None) -> dict[str, Any]:
    """The ``quantization_config`` of a model that was made sparse by ``config``; None where nobody remembers it."""
    given = vars(config).items() if config is not None else ()
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given}
    return {"quant_method": METHOD, "version": VERSION, "settings": plain or None}


def require_known(given: Mapping[str, Any]) -> None:
    """Refuse a ``quantization_config`` of another version, or with keys that say what is not understood here.

    Raises:
        ConfigError: it is one.
    """
    version = given.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ConfigError(
            f"quantization_config has version {str(version)[:40]}, expected {VERSION}: the sparse model was written by"
            " another version of smet; use that one"
        )
    if unknown := sorted(given.keys() - description(None).keys()):
        raise ConfigError(f"quantization_config has the unknown key {unknown[0]!r:.40}, expected quant_method, version"
                          " and settings")  # fmt: skip


def settings_in(given: Any) -> SmetConfig | None:
    """The settings that a ``quantization_config`` holds; None where there are none that can be used here, aloud.

    Nothing that they name is imported: settings with names of somebody's own code are left out. Where density was
    falling, it stays from now on where the files have it.

    Raises:
        ConfigError: one of them is none.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"quantization_config.settings is {str(given)[:40]!r}, expected an object or null")
    known = {part.name for part in fields(SmetConfig)}
    unknown = sorted(str(key)[:40] for key in given.keys() - known)
    own = sorted(key for key, value in given.items() if is_own(value))
    if unknown or own:
        what = f"{unknown[0]!r}, which this version does not know" if unknown else f"{own[0]!r} of own code"
        say(
            f"smet: note: the model's settings of sparse training have {what}, and are left out; to train it, say"
            " yours with smet.settings.remember(model, smet.SmetConfig(...))",
            logging.WARNING,
        )
        return None
    return SmetConfig(**{**given, "initial_density": None}).check()


def layers_in(held: Iterable[str]) -> set[str]:
    """Names of everything that has an entry by a name such as those of a sparse layer, beside ``weight``."""
    found = (name.rpartition(".") for name in held)
    return {layer for layer, _, last in found if last in KEYS and last != loading.SHAPE}


def stored_layer(
    name: str, held: Mapping[str, Held], read: Callable[[str], Any], shape: tuple[int, int], bias: bool
) -> StoredLayer:
    """The sparse layer ``name`` of the files.

    Args:
        held: every tensor of the files by its name.
        read: gives one of them; only those that say how the layer lies are read.
        shape: (out, in) of the layer that it is to be.
        bias: whether that has one.

    Raises:
        ConfigError: a tensor is missing, or is not what it has to be.
    """
    entries = {key: held[full] for key in KEYS if (full := f"{name}.{key}") in held}
    small: dict[str, tuple[str, tuple[int, ...]]]
    small = {loading.ORIENTATION: ("BOOL", ()), loading.BLOCK: ("I64", (2,)), loading.SHAPE: ("I64", (2,))}
    _require(name, entries, small)
    if (found := tuple(int(side) for side in read(f"{name}.{loading.SHAPE}"))) != shape:
        raise _wrong(name, entries, loading.SHAPE, f"says a shape of {list(found)}", f"{list(shape)} by config.json")
    transposed = bool(read(f"{name}.{loading.ORIENTATION}"))
    height, width = (int(side) for side in read(f"{name}.{loading.BLOCK}"))
    outputs, inputs = shape
    (rows, cols), size = (inputs, outputs) if transposed else shape, height * width
    if min(height, width) < 1 or rows % height or cols % width:
        raise _wrong(
            name, entries, loading.BLOCK, f"says tiles of {height} x {width}", f"sides that divide {rows} x {cols}"
        )
    grid = TileGrid(rows, cols, (height, width))
    values = entries.get(VALUES)
    if values is None:
        raise _missing(name, entries, VALUES)
    count = values.shape[0] if len(values.shape) == 1 else -1
    if values.dtype not in FLOATS or count < 0 or count % size or count > rows * cols:
        raise _wrong(
            name, entries, VALUES, f"is {values}", f"at most {rows * cols} numbers, {size} for each active tile"
        )
    expected = {MASK: ("U8", (grid.mask_bytes,))} if count < rows * cols or MASK in entries else {}
    sides = {side: ("I32", (n,)) for side, n in zip(loading.SIDES, (inputs, outputs), strict=True) if side in entries}
    if sides or loading.PERMUTATION in entries:
        sides[loading.PERMUTATION] = ("U8", (16,))
    _require(name, entries, {**expected, **sides})
    if bias != (f"{name}.bias" in held):
        raise ConfigError(
            f"{values.file}: {name} has {'no' if bias else 'a'} bias, expected {'one' if bias else 'none'}"
        )
    return StoredLayer(name=name, grid=grid, transposed=transposed, active=count // size, entries=entries)


def _require(name: str, entries: Mapping[str, Held], expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for key, (dtype, shape) in expected.items():
        if key not in entries:
            raise _missing(name, entries, key)
        if (entries[key].dtype, entries[key].shape) != (dtype, shape):
            raise _wrong(name, entries, key, f"is {entries[key]}", f"{dtype} {list(shape)}")


def _wrong(name: str, entries: Mapping[str, Held], key: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{entries[key].file}: {name}.{key} {found}, expected {expected}; the sparse model is damaged")


def _missing(name: str, entries: Mapping[str, Held], key: str) -> ConfigError:
    file = next(iter(entries.values())).file
    return ConfigError(f"{file}: {name}.{key} is missing beside {', '.join(entries)}; the sparse model is damaged")


def made(stored: StoredLayer, tensors: Mapping[str, Tensor], kind: type[SparseLinear] = SparseLinear) -> SparseLinear:
    """The layer of the files, without its bias.

    Args:
        tensors: those of ``stored.entries``, the values in the dtype in which they are to be.
        kind: its class.

    Raises:
        ConfigError: the mask does not fit the values, or an order is no permutation.
    """
    grid, entries = stored.grid, stored.entries
    if stored.is_full:
        bits = pack(torch.ones(grid.tiles, dtype=torch.bool, device=tensors[VALUES].device))
    else:
        bits = tensors[MASK]
        if (found := count_active(bits)) != stored.active or has_spare_bits(bits, grid.tiles):
            spare = f" of which some are beyond the {grid.tiles} tiles" if has_spare_bits(bits, grid.tiles) else ""
            raise _wrong(
                stored.name, entries, MASK, f"has {found} active tiles{spare}", f"{stored.active} by the values"
            )
    outputs, inputs = stored.shape
    layer = kind(inputs, outputs, bits, tensors[VALUES], grid.tile, stored.transposed)
    layer.orders = Orders(*(_order(stored, tensors, side) for side in loading.SIDES))
    digest = bytes(tensors[loading.PERMUTATION].tolist()).hex() if loading.PERMUTATION in entries else ""
    if digest != (expected := layer.orders.digest()):
        text = f"is {digest}, which is no digest of its inputs and outputs"
        raise _wrong(stored.name, entries, loading.PERMUTATION, text, expected or "none")
    return layer


_orders: weakref.WeakValueDictionary[bytes, Order] = weakref.WeakValueDictionary()
"""Layers that read the same features have one object, by which they share what is moved (``Order.read``)."""


def _order(stored: StoredLayer, tensors: Mapping[str, Tensor], side: str) -> Order | None:
    if side not in stored.entries:
        return None
    features = tensors[side].cpu().long()
    if not torch.equal(features.sort().values, torch.arange(len(features))):
        raise _wrong(stored.name, stored.entries, side, "is no permutation", f"each of 0 to {len(features) - 1} once")
    return _orders.setdefault(features.numpy().tobytes(), Order(features))
