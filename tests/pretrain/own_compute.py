"""Compute backends that a user may write, outside the packages; run files name them as ``package.module:Class``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smet.compute.dense import Dense
from smet.linear import SparseLinear


class Halves:
    """Each product as two halves of the dense one: the same function, computed in other pieces."""

    name = "halves"

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        return forced and layer.out_features > 8 and not layer.is_full

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        return torch.cat([F.linear(x, half) for half in layer.dense_weight(values).chunk(2)], -1)

    def input_gradient(self, layer: SparseLinear, grad: Tensor, values: Tensor) -> Tensor:
        halves = zip(grad.chunk(2, -1), layer.dense_weight(values).chunk(2), strict=True)
        return sum((part @ weight for part, weight in halves), start=grad.new_zeros(()))

    def values_gradient(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> Tensor:
        flat_x, flat = x.reshape(-1, layer.in_features), grad.reshape(-1, layer.out_features)
        a, b = (flat_x, flat) if layer.transposed else (flat, flat_x)
        return layer.compress_gradient(sum(x.t() @ y for x, y in zip(a.chunk(2), b.chunk(2), strict=True)))

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        return 6 * tokens * layer.in_features * layer.out_features


class Wrong(Dense):
    """A backend whose products are those of another matrix."""

    name = "wrong"

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        return super().forward(layer, x, 2 * values)


class Unfinished:
    name = "unfinished"
