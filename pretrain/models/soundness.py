"""Does what a family says of its model fit together? Asked before anything is built, without torch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pretrain.models import family_of, inventory_of
from pretrain.models.family import FamilyConfig
from pretrain.models.inventory import Inventory, Kind, Place, Role, Shape, Weight
from smet.errors import ConfigError, nearest

NAMED = ("layers", "vocabulary", "longest")
MATRICES = (Role.EMBEDDING, Role.COLUMN, Role.ROW, Role.HEAD)


def contradictions(model: FamilyConfig, tensor: int = 1) -> list[str]:
    """Every way in which the inventory of ``model`` contradicts itself, one sentence each.

    Args:
        tensor: tensor-parallel ranks; more than one need what ``Role`` promises.
    """
    who = f"model.family '{model.family}'"
    try:
        inventory = inventory_of(model)
        if not isinstance(shape := inventory.shape, Shape):
            return [f"{who}: shape() gives a {type(shape).__name__}, expected a Shape (pretrain.models.inventory)"]
        found = [*_of_keys(family_of(model).function, model), *_of_shape(shape, model)]
        found += _of_weights(inventory.weights)
        if not found:
            found = [*_of_blocks(inventory), *_of_biases(inventory)]
        if not found:
            found = [*_of_saved(inventory), *(_of_shards(inventory) if tensor > 1 else ())]
    except ConfigError as error:
        return error.problems
    return [f"{who}: {text}" for text in found]


def _of_keys(function: tuple[str, ...], model: FamilyConfig) -> Iterator[str]:
    """Keys that are compared when a run goes on."""
    known = [part.name for part in dataclasses.fields(model)]
    for key in function:
        if key not in known:
            yield f"function has {key!r}, expected keys of the model section{nearest(str(key), known)}"


def _of_shape(shape: Shape, model: FamilyConfig) -> Iterator[str]:
    known = [part.name for part in dataclasses.fields(model)]
    for name in ("layers", "width", "vocabulary", "longest", "mixed"):
        if not _is_size(value := getattr(shape, name)):
            yield f"shape().{name} is {value!r}, expected a whole number of 1 or more"
    if not isinstance(shape.deviation, (int, float)) or not 0 < shape.deviation < math.inf:
        yield f"shape().deviation is {shape.deviation!r}, expected a positive number"
    for name in NAMED:
        key = shape.keys.get(name)
        if key not in known:
            yield f"shape().keys calls {name} {key!r}, expected a key of the model section{nearest(str(key), known)}"
    for key, size in shape.shared.items():
        if key not in known:
            yield f"shape().shared has {key!r}, expected keys of the model section{nearest(str(key), known)}"
        elif not _is_size(size):
            yield f"shape().shared has {key} {size!r}, expected a whole number of 1 or more"


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _of_weights(weights: tuple[Any, ...]) -> Iterator[str]:
    """Each by itself. A block's weights stand together, and are called by its name."""
    if strangers := [one for one in weights if not isinstance(one, Weight) or not isinstance(one.role, Role)]:
        yield f"weights() lists {strangers[0]!r:.80}, expected Weight(name=..., shape=..., role=Role..., block=...)"
        return
    if twice := [name for name, count in Counter(one.name for one in weights).items() if count > 1]:
        yield f"weights() lists {', '.join(twice[:3])} more than once"
    known, last = set[str](), None
    for one in weights:
        wanted = 2 if one.role in MATRICES else 1
        if len(one.shape) != wanted or not all(_is_size(side) for side in one.shape):
            yield f"{one.name} has the shape {one.shape!r}, expected {wanted} sizes for role {one.role.name}"
        if one.role in MATRICES and not one.name.endswith(".weight"):
            yield f"{one.name} has role {one.role.name}, expected a name that ends in .weight"
        if not one.name.startswith(f"{one.block}."):
            yield f"{one.name} is said to be of block {one.block}, expected a name that begins with {one.block}."
        if last != one.block:
            if one.block in known:
                yield f"weights() comes back to block {one.block} with {one.name}, expected a block's weights together"
            known.add(one.block)
            last = one.block


def _of_blocks(inventory: Inventory) -> Iterator[str]:
    """Embedding, as many layers as the shape says, a norm, and the head, which a tied model lists no weight of."""
    shape, blocks = inventory.shape, inventory.blocks
    wide = (shape.vocabulary, shape.width)
    for role, count in ((Role.EMBEDDING, 1), (Role.HEAD, 0 if shape.tied else 1)):
        own = [one for one in inventory.weights if one.role is role]
        if len(own) != count:
            tied = f" where shape().tied is {shape.tied}" if role is Role.HEAD else ""
            yield f"weights() lists {len(own)} of role {role.name}, expected {count}{tied}"
        yield from (
            f"{one.name} has the shape {one.shape}, shape() says vocabulary x width = {wide}, expected the same"
            for one in own
            if one.shape != wide
        )
    layers = sum(block.kind is Kind.LAYER for block in blocks)
    if layers != shape.layers:
        yield f"weights() lists {layers} blocks of layers, shape().layers is {shape.layers}, expected the same"
    if not any(block.name == shape.head and block.weights for block in blocks) and not shape.tied:
        yield f"shape().head is '{shape.head}', expected the block of the weight of role HEAD"
    ordered = (Kind.EMBEDDING, Kind.LAYER, Kind.NORM, Kind.HEAD)
    places = [ordered.index(block.kind) for block in blocks]
    if places != sorted(places):
        names = ", ".join(f"{block.name} ({block.kind.value})" for block in blocks[:6])
        yield (
            f"the blocks of weights() are {names}{', ...' if len(blocks) > 6 else ''}, expected the order in which"
            + (" the model computes: embedding, layers, norm, head")
        )


def _of_biases(inventory: Inventory) -> Iterator[str]:
    """A bias is as long as its product's outputs, and shared out like them."""
    by_name = {one.name: one for one in inventory.weights}
    wanted = {Role.COLUMN: Role.COLUMN_SHIFT, Role.ROW: Role.SHIFT}
    for one in inventory.weights:
        product = by_name.get(f"{one.module}.weight")
        if one.role not in wanted.values() or product is None or not product.role.linear:
            if one.role is Role.COLUMN_SHIFT:
                yield f"{one.name} has role COLUMN_SHIFT, expected a weight {one.module}.weight of role COLUMN"
            continue
        if one.role is not wanted.get(product.role):
            expected = wanted.get(product.role)
            what = f"role {expected.name}" if expected else "no bias"
            yield f"{one.name} has role {one.role.name} beside a {product.role.name} weight, expected {what}"
        if one.shape[0] != product.shape[0]:
            yield f"{one.name} has {one.shape[0]} elements, expected the {product.shape[0]} outputs of {product.name}"


def _of_saved(inventory: Inventory) -> Iterator[str]:
    """That it is a number of bytes; how many there are, ``pretrain.parallel.family`` can measure."""
    place = Place(width=4, tensor=1, sequence=False, documents=False)
    for block in {block.kind: block for block in inventory.blocks if block.kind in (Kind.LAYER, Kind.NORM)}.values():
        size = inventory.saved(block, place)
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf:
            yield f"saved() gives {size!r:.80} for {block.name}, expected bytes per token, a number of 0 or more"


def _of_shards(inventory: Inventory) -> Iterator[str]:
    """What collectives are put behind has to be the stream, which every rank holds whole."""
    width = inventory.shape.width
    for one in inventory.weights:
        stream, what = {
            Role.COLUMN: (one.shape[-1], "inputs"), Role.ROW: (one.shape[0], "outputs"),
            Role.SCALE: (one.shape[0], "elements"), Role.SHIFT: (one.shape[0], "elements"),
        }.get(one.role, (width, ""))  # fmt: skip
        if stream != width:
            yield (
                f"{one.name} of role {one.role.name} has {stream} {what}, expected the stream's {width} (shape().width)"
                " on more than one tensor-parallel rank"
            )
