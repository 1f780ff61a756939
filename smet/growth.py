"""Gradients that criteria ask for, each rank holding its part of the sums.

In a step that is asked for, each layer hands over its gradient as soon as it is computed: the dense one, or that of
the active weights. It is summed over the ranks of a sharding engine at once, each keeping the sum of its own 1/D of
the tiles; micro-batches add to that. What is at rest is 4 bytes per weight and D ranks, for that one step (RigL,
Evci et al., ICML 2020), and never more than one layer's gradient whole on a rank.

Under plain torch nothing may be sent from inside a backward pass: ranks of DistributedDataParallel may skip unused
layers, and its own collectives run meanwhile. There each rank keeps its whole sums (4 bytes per weight), and
replicas add them up when they are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from smet import dtensors
from smet.activity import TOPOLOGY, during
from smet.errors import ConfigError
from smet.exchange import all_gather_flat, reduce_scatter_flat
from smet.linear import SparseLinear

MOMENTUM = 0.9
"""Decay of the mean of dense gradients per optimizer step, that of SNFS (arXiv 1907.04840)."""

Key = tuple[SparseLinear, str]


def part_of(tiles: int, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(first, number) of a layer's tiles whose gradients this rank of ``group`` keeps."""
    ranks, rank = (dist.get_world_size(group), dist.get_rank(group)) if group is not None else (1, 0)
    part = -(-tiles // ranks)
    first = min(rank * part, tiles)
    return first, min(part, tiles - first)


class Gradients:
    """Sums of one step's gradients, and the exponential mean of dense ones.

    Args:
        needed: what criteria need (``smet.criteria.needs``).
        group: ranks over which an engine cuts what belongs to a layer; None = this one alone.
        replicas: ranks that hold the same layers; looked at where there is no ``group``.
        mesh: of ``group``, where torch cuts tensors over it; the means are then cut as it cuts parameters.
    """

    def __init__(
        self,
        needed: Collection[str],
        group: dist.ProcessGroup | None = None,
        replicas: dist.ProcessGroup | None = None,
        mesh: Any = None,
    ):
        self.group, self.mesh = group, mesh
        self.replicas = replicas if group is None else None
        self.needed = frozenset(needed) & {"gradient", "active_gradient", "moment"}
        self.collecting = False
        self.ranks = dist.get_world_size(group) if group is not None else 1
        self._sums: dict[Key, Tensor] = {}
        self._totals: dict[Key, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        """This rank's part of the mean dense gradient by layer name, ``(tiles / D, tile_size)``; see ``adopt``."""

    def collect(self, layers: Iterable[SparseLinear], updates: bool) -> None:
        """Ask ``layers`` for their gradients from now on, if anybody needs this step's; what was collected stays.

        Args:
            updates: whether the step ends in a topology update.
        """
        dense = "moment" in self.needed or (updates and "gradient" in self.needed)
        active = updates and "active_gradient" in self.needed
        self.collecting = dense or active
        for layer in layers:
            layer.gradient_sink = self.add_dense if dense else None
            layer.values_sink = self.add_active if active else None

    def stop(self, layers: Iterable[SparseLinear]) -> None:
        """Ask no more, and forget what was collected."""
        self.collecting = False
        for layer in layers:
            layer.gradient_sink = layer.values_sink = None
        self._sums.clear()
        self._totals.clear()

    def add_dense(self, layer: SparseLinear, dense: Tensor) -> None:
        """Add one micro-batch's canonical gradient ``(rows, cols)``. Collective: layers come in one order."""
        self._add(layer, "dense", layer.grid.to_tiles(dense.detach()).float())

    def add_active(self, layer: SparseLinear, values: Tensor) -> None:
        """Add one micro-batch's gradient of the values ``(active * tile_size,)``. Collective as ``add_dense``."""
        self._add(layer, "active", values.detach().view(-1, layer.grid.tile_size).float())

    @during(TOPOLOGY)
    def _add(self, layer: SparseLinear, kind: str, tiles: Tensor) -> None:
        if self.ranks > 1:
            part = -(-tiles.shape[0] // self.ranks)
            padded = tiles.new_zeros(part * self.ranks, layer.grid.tile_size)
            padded[: tiles.shape[0]] = tiles
            own = tiles.new_empty(part, layer.grid.tile_size)
            reduce_scatter_flat(own.view(-1), padded.view(-1), group=self.group)
        else:
            own = tiles.clone()
        key = layer, kind
        self._sums[key] = own if key not in self._sums else self._sums[key].add_(own)

    def finite(self) -> bool:
        """Whether what was collected on this rank is: not so after an overflow."""
        return all(bool(own.isfinite().all()) for own in self._sums.values())

    def _total(self, layer: SparseLinear, kind: str) -> Tensor:
        """This rank's part of the gradient summed over micro-batches and ranks. Collective over replicas.

        A layer that took no part in the step has 0.

        Raises:
            RuntimeError: nobody asked for gradients.
        """
        key = layer, kind
        if key in self._totals:
            return self._totals[key]
        total = self._sums.pop(key, None)
        if total is None:
            if not self.collecting:
                raise RuntimeError("gradient growth needs before_step() before the step's first micro-batch")
            tiles = layer.grid.tiles if kind == "dense" else layer.active
            total = torch.zeros(-(-tiles // self.ranks), layer.grid.tile_size, device=layer.values.device)
        if self.replicas is not None:
            dist.all_reduce(total, group=self.replicas)
        self._totals[key] = total
        return total

    def adopt(self, means: dict[str, Tensor], layers: dict[str, SparseLinear]) -> None:
        """Go on with ``means``, which travel with the optimizer's state; they are begun where there are none.

        Raises:
            ConfigError: they are of other layers' sizes, or were cut over another number of ranks.
        """
        if "moment" not in self.needed:
            return
        for name, layer in layers.items():
            ranks = self.ranks if self.mesh is None else 1
            shape = (-(-layer.grid.tiles // ranks), layer.grid.tile_size)
            if name not in means:
                means[name] = (torch.zeros(shape, device=layer.values.device) if self.mesh is None
                               else dtensors.zeros_over(self.mesh, shape))  # fmt: skip
            if tuple(means[name].shape) != shape or dtensors.is_cut(means[name]) != (self.mesh is not None):
                raise ConfigError(
                    f"the mean gradient of {name} in the optimizer's state has shape {tuple(means[name].shape)},"
                    f" expected {shape}: it is of another model, or was saved over another number of ranks"
                )
            means[name] = means[name].to(layer.values.device, copy=True)  # it may be somebody's file
        self.means = means

    def average(self, layers: dict[str, SparseLinear]) -> None:
        """Take the gradients of a step that was applied into the means. Collective over replicas."""
        if not self.means or not self.collecting:
            return
        ranks = dist.get_world_size(self.replicas) if self.replicas is not None else self.ranks
        for name, layer in layers.items():
            mean = dtensors.own(self.means[name])
            total = self._total(layer, "dense")[: mean.shape[0]]
            mean.mul_(MOMENTUM).add_(total, alpha=(1 - MOMENTUM) / ranks)

    def given(self, name: str, layer: SparseLinear) -> dict[str, Tensor]:
        """What is needed of a layer at an update, as criteria see it. Collective. Frees what was collected for it."""
        found = {}
        if "gradient" in self.needed:
            found["gradient"] = self._scores(layer, self._total(layer, "dense"))
        if "moment" in self.needed:
            found["moment"] = self._scores(layer, dtensors.own(self.means[name]))
        if "active_gradient" in self.needed:
            whole = self._whole(self._total(layer, "active"))
            found["active_gradient"] = whole[: layer.active]
        for kind in ("dense", "active"):
            self._totals.pop((layer, kind), None)
            self._sums.pop((layer, kind), None)
        return found

    def _scores(self, layer: SparseLinear, own: Tensor) -> Tensor:
        part = -(-layer.grid.tiles // self.ranks)
        return self._whole(F.pad(own.abs().sum(1), (0, part - own.shape[0])))[: layer.grid.tiles]

    def _whole(self, own: Tensor) -> Tensor:
        if self.ranks == 1:
            return own
        whole = own.new_empty(own.shape[0] * self.ranks, *own.shape[1:])
        all_gather_flat(whole.view(-1), own.contiguous().view(-1), group=self.group)
        return whole

    @property
    def bytes_held(self) -> int:
        """Bytes of the sums on this rank now."""
        held = [*self._sums.values(), *self._totals.values()]
        return sum(own.numel() * own.element_size() for own in held)
