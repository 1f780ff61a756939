"""Families whose parts contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pretrain.models.inventory import Weight
from tests.families.tiny import FAMILY
from tests.families.tiny.config import TinyConfig
from tests.families.tiny.inventory import weights


def _without_a_bias(model: TinyConfig) -> Iterator[Weight]:
    return (weight for weight in weights(model) if weight.name != "stack.1.mix.give.bias")


def _without_a_layer(model: TinyConfig) -> Iterator[Weight]:
    return (weight for weight in weights(model) if not weight.name.startswith("stack.1.mix.give."))


def _of_another_size(model: TinyConfig) -> Iterator[Weight]:
    return weights(replace(model, inner=model.inner + 8))


def _upside_down(model: TinyConfig) -> Iterator[Weight]:
    return reversed(list(weights(model)))


UNLISTED = replace(FAMILY, weights=_without_a_bias)
UNLISTED_LAYER = replace(FAMILY, weights=_without_a_layer)
RESHAPED = replace(FAMILY, weights=_of_another_size)
REORDERED = replace(FAMILY, weights=_upside_down)
