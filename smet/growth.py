"""Dense gradients for growth by gradient (RigL, Evci et al., ICML 2020), never whole on a rank for longer than a layer.

On the step that ends in a topology update, each layer hands over its dense gradient as soon as it is computed. It is
summed over data-parallel ranks at once, each keeping the sum of its own 1/D of the blocks; micro-batches add to
that. What is at rest is 4 bytes per dense weight and D ranks, for that one step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor

from smet.exchange import all_gather_flat, reduce_scatter_flat
from smet.linear import SparseLinear


class DenseGradients:
    """Sums of dense gradients, and the scores of blocks by them.

    Args:
        group: data-parallel ranks that hold the same layers; None = this one alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.ranks = dist.get_world_size(group) if group is not None else 1
        self._sums: dict[SparseLinear, Tensor] = {}

    def collect(self, layers: Iterable[SparseLinear]) -> None:
        """Ask ``layers`` for their dense gradients from now on."""
        for layer in layers:
            layer.gradient_sink = self.add

    def stop(self, layers: Iterable[SparseLinear]) -> None:
        """Ask no more, and forget what was collected."""
        for layer in layers:
            layer.gradient_sink = None
        self._sums.clear()

    def add(self, layer: SparseLinear, dense: Tensor) -> None:
        """Add one micro-batch's canonical gradient ``(rows, cols)``. Collective: layers come in one order."""
        tiles = layer.grid.to_blocks(dense.detach()).float()
        if self.ranks > 1:
            part = -(-layer.grid.blocks // self.ranks)
            padded = tiles.new_zeros(part * self.ranks, layer.grid.block_size)
            padded[: layer.grid.blocks] = tiles
            own = tiles.new_empty(part, layer.grid.block_size)
            reduce_scatter_flat(own.view(-1), padded.view(-1), group=self.group)
        else:
            own = tiles.clone()
        self._sums[layer] = own if layer not in self._sums else self._sums[layer].add_(own)

    def scores(self, layer: SparseLinear) -> Tensor:
        """|gradient summed over micro-batches and ranks|, summed per block: ``(blocks,)``. Collective.

        Frees what was collected for ``layer``.

        Raises:
            RuntimeError: nothing was collected.
        """
        if layer not in self._sums:
            raise RuntimeError("gradient growth needs before_step() before the step's first micro-batch")
        own = self._sums.pop(layer).abs().sum(1)
        if self.ranks == 1:
            return own
        whole = own.new_empty(own.numel() * self.ranks)
        all_gather_flat(whole, own, group=self.group)
        return whole[: layer.grid.blocks]

    @property
    def bytes_held(self) -> int:
        """Bytes of the sums on this rank now."""
        return sum(own.numel() * own.element_size() for own in self._sums.values())
