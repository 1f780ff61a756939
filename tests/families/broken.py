"""Families whose parts contradict each other, or fail, as those that a third person writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pretrain.models.inventory import Role, Weight
from tests.families.tiny import FAMILY
from tests.families.tiny.config import TinyConfig
from tests.families.tiny.inventory import shape, weights


def _without_a_bias(model: TinyConfig) -> Iterator[Weight]:
    return (weight for weight in weights(model) if weight.name != "stack.1.mix.give.bias")


def _without_a_layer(model: TinyConfig) -> Iterator[Weight]:
    return (weight for weight in weights(model) if not weight.name.startswith("stack.1.mix.give."))


def _of_another_size(model: TinyConfig) -> Iterator[Weight]:
    return weights(replace(model, inner=model.inner + 8))


def _swapped(model: TinyConfig) -> Iterator[Weight]:
    """Its first two layers in each other's place."""
    listed = list(weights(model))
    layers = [[one for one in listed if one.block == f"stack.{n}"] for n in (0, 1)]
    rest = [one for one in listed if one.block not in ("read", "stack.0", "stack.1")]
    return iter([listed[0], *layers[1], *layers[0], *rest])


UNLISTED = replace(FAMILY, weights=_without_a_bias)
UNLISTED_LAYER = replace(FAMILY, weights=_without_a_layer)
RESHAPED = replace(FAMILY, weights=_of_another_size)
REORDERED = replace(FAMILY, weights=_swapped)


def _give_as_column(model: TinyConfig) -> Iterator[Weight]:
    """A square product: its shape is right in either role."""
    roles = {"mix.give.weight": Role.COLUMN, "mix.give.bias": Role.COLUMN_SHIFT}
    for one in weights(model):
        role = next((role for end, role in roles.items() if one.name.endswith(end)), one.role)
        yield replace(one, role=role)


def _with_a_wrong_bias(model: TinyConfig) -> Iterator[Weight]:
    return (replace(one, role=Role.SHIFT) if one.name.endswith("ask.bias") else one for one in weights(model))


def _with_a_narrow_norm(model: TinyConfig) -> Iterator[Weight]:
    return (replace(one, shape=(8,)) if one.name == "stack.0.between.scale" else one for one in weights(model))


def _fails(*_: Any) -> Any:
    raise KeyError("n_embd")


def _shape(**changes: Any) -> Any:
    return replace(FAMILY, shape=lambda model: replace(shape(model), **changes))


@dataclass(kw_only=True)
class TextConfig(TinyConfig):
    def problems(self) -> Any:
        return "all is lost"


@dataclass(kw_only=True)
class FailingConfig(TinyConfig):
    def __post_init__(self) -> None:
        self.head = self.features // (self.heads - 4)


GIVE_AS_COLUMN = replace(FAMILY, weights=_give_as_column)
WRONG_BIAS = replace(FAMILY, weights=_with_a_wrong_bias)
NO_FOLDER = replace(FAMILY, package="tests.families")
OTHER_FOLDER = replace(FAMILY, package="pretrain.models.llama")
SAVES_NOTHING_KNOWN = replace(FAMILY, saved=lambda *_: None)
SAVES_ZERO = replace(FAMILY, saved=lambda *_: 0)
NARROW_NORM = replace(FAMILY, weights=_with_a_narrow_norm)
SAVES_LESS = replace(FAMILY, saved=lambda *_: -1.0)
SAVED_FAILS = replace(FAMILY, saved=_fails)
WEIGHTS_FAIL = replace(FAMILY, weights=_fails)
WEIGHTS_ARE_TUPLES = replace(FAMILY, weights=lambda model: [("read.weight", (98, 32))])
SHAPE_FAILS = replace(FAMILY, shape=_fails)
SHAPE_IS_A_DICT = replace(FAMILY, shape=lambda model: {"layers": 3})
FOUR_LAYERS = _shape(layers=4)
WIDER = _shape(width=40)
TIED = _shape(tied=True)
OTHER_HEAD = _shape(head="lm_head")
OTHER_KEYS = _shape(keys={"layers": "depht", "vocabulary": "words"})
OTHER_FUNCTION = replace(FAMILY, function=("headz",))
NO_DEVIATION = _shape(deviation=0)
TEXT = replace(FAMILY, config=TextConfig)
FAILING = replace(FAMILY, config=FailingConfig)
