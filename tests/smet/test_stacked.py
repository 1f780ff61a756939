"""Weights of many layers made at once are those made one by one, and so are gradients and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet import SparseLinear
from smet.stacked import are_alike, stacked


def layers_of(width: int = 16, count: int = 3, **settings: Any) -> list[SparseLinear]:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, 8, bias=False) for _ in range(count)])
    smet.sparsify(model, quiet=True, **{"density": 0.3, **settings})
    return list(smet.sparse_layers(model).values())


@pytest.mark.parametrize("block", [(1, 1), (2, 4)])
@pytest.mark.parametrize("falling", [False, True])
def test_weights_gradients_and_what_is_told_are_equal_to_the_bit(block: tuple[int, int], falling: bool) -> None:
    layers = layers_of(block=block)
    if falling:
        for layer in layers:
            layer.close(torch.arange(layer.active) == 1)
    told: list[list[Any]] = []
    factor = torch.randn(3, 8, 16)
    found = []
    for make in (stacked, lambda layers: torch.stack([layer.weight for layer in layers])):
        told.append([])
        for layer in layers:
            layer.gradient_sink = lambda layer, dense: told[-1].append((layers.index(layer), dense.clone()))
            layer.values_sink = lambda layer, values: told[-1].append((layers.index(layer), values.clone()))
        weights = make(layers)
        found.append((weights.detach(), *torch.autograd.grad((weights * factor).sum(), [la.values for la in layers])))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    once, each = ({(number, tensor.dim()): tensor for number, tensor in one} for one in told)
    assert once.keys() == each.keys() and len(told[0]) == len(told[1]) == 6
    assert all(torch.equal(tensor, each[key]) for key, tensor in once.items())


def test_those_that_are_not_alike_are_left_to_themselves() -> None:
    assert are_alike(layers_of())
    for other in (
        layers_of(count=1), layers_of(density=1.0), layers_of(block=(2, 4), permute="both"),
        layers_of(block=(8, 4), balance="never"),
    ):  # fmt: skip
        assert not are_alike(other)
    layers = layers_of()
    assert not are_alike([*layers, *layers_of(24)])
    layers[1].values.requires_grad_(False)
    assert not are_alike(layers)
