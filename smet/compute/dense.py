"""Products with the dense weight, which lives only inside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from smet.linear import SparseLinear


class Dense:
    """Expand, multiply, compress: what every other backend must equal. See ``smet.compute.Compute``."""

    name = "dense"

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Everything."""
        return True

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        return F.linear(x, layer.dense_weight(values))

    def input_gradient(self, layer: SparseLinear, grad: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        return grad @ layer.dense_weight(values)

    def values_gradient(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> Tensor:
        """See ``Compute``; who else wants the dense gradient (``layer.gradient_sink``) gets it here."""
        flat_x = x.reshape(-1, layer.in_features)
        flat_grad = grad.reshape(-1, layer.out_features)
        dense = flat_x.t() @ flat_grad if layer.transposed else flat_grad.t() @ flat_x
        return layer.compress_gradient(dense)

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        """See ``Compute``: the same at every density."""
        return 6 * tokens * layer.in_features * layer.out_features
