"""Every weight of a tiny model, and what one of its layers keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.models.inventory import Block, Kind, Place, Role, Shape, Weight
from tests.families.tiny.config import TinyConfig


def shape(model: TinyConfig) -> Shape:
    """The sizes that every family has."""
    return Shape(
        layers=model.depth,
        width=model.features,
        vocabulary=model.words,
        longest=model.context,
        deviation=model.spread,
        mixed=model.features,
        tied=model.tied,
        head="guess",
        shared={key: getattr(model, key) for key in ("heads", "inner", "words")},
        keys={"layers": "depth", "vocabulary": "words", "longest": "context"},
    )


def weights(model: TinyConfig) -> Iterator[Weight]:
    """Every weight, in the order in which the model computes."""
    yield Weight(name="read.weight", shape=(model.words, model.features), role=Role.EMBEDDING, block="read")
    for n in range(model.depth):
        for name, size, role in _layer(model, n):
            yield Weight(name=f"stack.{n}.{name}", shape=size, role=role, block=f"stack.{n}")
    for name, size, role in _norm("last", model.features):
        yield Weight(name=name, shape=size, role=role, block="last")
    if not model.tied:
        yield Weight(name="guess.weight", shape=(model.words, model.features), role=Role.HEAD, block="guess")


def _layer(model: TinyConfig, n: int) -> Iterator[tuple[str, tuple[int, ...], Role]]:
    features, inner = model.features, model.inner
    yield from _norm("before", features)
    for name in ("ask", "know", "tell"):
        yield from _linear(f"mix.{name}", features, features, Role.COLUMN, Role.COLUMN_SHIFT)
    yield from _linear("mix.give", features, features, Role.ROW, Role.SHIFT)
    yield from _norm("between", features)
    for name in ("gate", "wide") if n in model.gated else ("wide",):
        yield from _linear(f"think.{name}", inner, features, Role.COLUMN, Role.COLUMN_SHIFT)
    yield from _linear("think.narrow", features, inner, Role.ROW, Role.SHIFT)


def _norm(name: str, features: int) -> Iterator[tuple[str, tuple[int, ...], Role]]:
    yield f"{name}.scale", (features,), Role.SCALE
    yield f"{name}.shift", (features,), Role.SHIFT


def _linear(
    name: str, outputs: int, inputs: int, role: Role, shift: Role
) -> Iterator[tuple[str, tuple[int, ...], Role]]:
    yield f"{name}.weight", (outputs, inputs), role
    yield f"{name}.bias", (outputs,), shift


def saved(model: TinyConfig, block: Block, place: Place) -> float:
    """Bytes per token: a norm keeps its input, mean and deviation; products their inputs; attention q, k, v, its
    output and a sum; the feed-forward what its activation and its product with the gate were given."""
    width, tensor, features = place.width, place.tensor, model.features
    norm = (width * features + 8) / (tensor if place.sequence else 1) + width * features
    if block.kind is Kind.NORM:
        return norm
    attention = (4 * features * width + 4 * model.heads) / tensor
    gated = any(weight.name.endswith("gate.weight") for weight in block.weights)
    return 2 * norm + attention + (4 if gated else 2) * model.inner * width / tensor
