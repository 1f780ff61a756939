"""Dense gradients for growth by gradient (RigL, Evci et al., ICML 2020), never whole on a rank for longer than a layer.

On the step that ends in a topology update, each layer hands over its dense gradient as soon as it is computed. It is
summed over the ranks of a sharding engine at once, each keeping the sum of its own 1/D of the blocks; micro-batches
add to that. What is at rest is 4 bytes per dense weight and D ranks, for that one step.

Under plain torch nothing may be sent from inside a backward pass: ranks of DistributedDataParallel may skip unused
layers, and its own collectives run meanwhile. There each rank keeps its whole sums (4 bytes per dense weight), and
replicas add them up when they are asked for scores.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from smet.activity import TOPOLOGY, during
from smet.exchange import all_gather_flat, reduce_scatter_flat
from smet.linear import SparseLinear


class DenseGradients:
    """Sums of dense gradients, and the scores of blocks by them.

    Args:
        group: ranks over which an engine cuts what belongs to a layer; None = this one alone.
        replicas: ranks that hold the same layers; looked at where there is no ``group``.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, replicas: dist.ProcessGroup | None = None):
        self.group = group
        self.replicas = replicas if group is None else None
        self.collecting = False
        self.ranks = dist.get_world_size(group) if group is not None else 1
        self._sums: dict[SparseLinear, Tensor] = {}

    def collect(self, layers: Iterable[SparseLinear]) -> None:
        """Ask ``layers`` for their dense gradients from now on; what was collected stays."""
        self.collecting = True
        for layer in layers:
            layer.gradient_sink = self.add

    def stop(self, layers: Iterable[SparseLinear]) -> None:
        """Ask no more, and forget what was collected."""
        self.collecting = False
        for layer in layers:
            layer.gradient_sink = None
        self._sums.clear()

    @during(TOPOLOGY)
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

    def finite(self) -> bool:
        """Whether what was collected on this rank is: not so after an overflow."""
        return all(bool(own.isfinite().all()) for own in self._sums.values())

    def scores(self, layer: SparseLinear) -> Tensor:
        """|gradient summed over micro-batches and ranks|, summed per block: ``(blocks,)``. Collective.

        Frees what was collected for ``layer``. A layer that took no part in the step has scores of 0.

        Raises:
            RuntimeError: nobody asked for gradients.
        """
        total = self._sums.pop(layer, None)
        if total is None:
            if not self.collecting:
                raise RuntimeError("gradient growth needs before_step() before the step's first micro-batch")
            total = torch.zeros(-(-layer.grid.blocks // self.ranks), layer.grid.block_size, device=layer.values.device)
        if self.replicas is not None:
            dist.all_reduce(total, group=self.replicas)
        own = total.abs().sum(1)
        if self.ranks == 1:
            return own
        whole = own.new_empty(own.numel() * self.ranks)
        all_gather_flat(whole, own, group=self.group)
        return whole[: layer.grid.blocks]

    @property
    def bytes_held(self) -> int:
        """Bytes of the sums on this rank now."""
        return sum(own.numel() * own.element_size() for own in self._sums.values())
