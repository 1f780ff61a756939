"""Products of a few tokens from mask and values alone, as generation makes them; all else as the dense backend does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import Tensor

from smet.compute.dense import Dense
from smet.kernels import few_cpu
from smet.mask import unpack

if TYPE_CHECKING:
    from smet.linear import SparseLinear


@dataclass
class _Known:
    mask: Tensor | None
    version: tuple[int | None, int]
    starts: Tensor


class Few(Dense):
    """For one token the time of a product is that of reading the weights: here only active ones. CPU only.

    Not in the table, since it serves no training: whoever generates names it (``layer.compute``).
    """

    name = "few"

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[SparseLinear, _Known] = WeakKeyDictionary()

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Few tokens in fp32 or bf16 on a CPU."""
        few = 0 < x.numel() <= few_cpu.MOST_TOKENS * layer.in_features
        fits = few and x.is_cpu and x.dtype in few_cpu.DTYPES and not layer.is_full
        return forced and fits and few_cpu.library() is not None

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        flat, bits = x.reshape(-1, layer.in_features), layer.packed_mask()
        y = few_cpu.product(bits, self._starts(layer, bits), values, flat, layer.grid, by_rows=not layer.transposed)
        return y.view(*x.shape[:-1], layer.out_features)

    def _starts(self, layer: SparseLinear, bits: Tensor) -> Tensor:
        known, mask, version = self._known.get(layer), layer.mask, layer.topology_version
        if known is None or known.mask is not mask or known.version != version:
            active = unpack(bits, layer.grid.tiles)
            if int(active.sum()) != layer.active:  # the kernel would read beyond the values
                raise RuntimeError(f"mask holds {int(active.sum())} active tiles, the layer {layer.active}")
            known = _Known(mask, version, few_cpu.starts(active, layer.grid))
            self._known[layer] = known
        return known.starts
