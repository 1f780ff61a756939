"""Products of a few tokens from mask and values alone, as generation makes them; all else as the dense backend does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from smet.compute.dense import Dense
from smet.compute.kept import OfMasks
from smet.kernels import few_cpu
from smet.mask import unpack

if TYPE_CHECKING:
    from smet.linear import SparseLinear


class Few(Dense):
    """For one token the time of a product is that of reading the weights: here only active ones. CPU only.

    Not in the table, since it serves no training: whoever generates names it (``layer.compute``).
    """

    name = "few"

    def __init__(self) -> None:
        self._starts = OfMasks(_starts)

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Few tokens in fp32 or bf16 on a CPU."""
        few = 0 < x.numel() <= few_cpu.MOST_TOKENS * layer.in_features
        fits = few and x.is_cpu and x.dtype in few_cpu.DTYPES and not layer.is_full
        return forced and fits and few_cpu.library() is not None

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        flat, bits = x.reshape(-1, layer.in_features), layer.packed_mask()
        y = few_cpu.product(bits, self._starts.of(layer, bits), values, flat, layer.grid, by_rows=not layer.transposed)
        return y.view(*x.shape[:-1], layer.out_features)


def _starts(layer: SparseLinear, bits: Tensor) -> Tensor:
    active = unpack(bits, layer.grid.tiles)
    if int(active.sum()) != layer.active:  # the kernel would read beyond the values
        raise RuntimeError(f"mask holds {int(active.sum())} active tiles, the layer {layer.active}")
    return few_cpu.starts(active, layer.grid)
