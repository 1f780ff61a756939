"""Layout: which rank does what. The one owner of degrees, process groups and the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pretrain.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Coordinates:
    """Place of one rank. Tensor-parallel ranks are neighbours, then data-parallel ones, then stages."""

    data: int
    tensor: int
    stage: int

    @staticmethod
    def of(rank: int, data: int, tensor: int) -> Coordinates:
        """Coordinates of ``rank`` in a layout of these sizes (DeepSpeed's order of pipe, data, model)."""
        return Coordinates(data=rank // tensor % data, tensor=rank % tensor, stage=rank // (tensor * data))


@dataclass
class Layout:
    """This process among all. Ranks of a data-parallel group hold the same shard of the model."""

    world_size: int
    rank: int
    dp_size: int
    dp_rank: int
    device: torch.device
    data_group: Any
    """Data-parallel ranks of this shard, for mask gathers; None in a run of one process."""
    control: dist.ProcessGroup | None
    """All ranks on gloo, for decisions and checkpoints; never carries training traffic."""
    background: dist.ProcessGroup | None = None
    """All ranks on gloo once more, for the thread that writes checkpoints."""
    tensor_size: int = 1
    tensor_rank: int = 0
    tensor_group: Any = None
    tensor_control: Any = None
    """The tensor-parallel ranks on gloo, for objects."""
    stages: int = 1
    stage: int = 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The data-parallel group where it has more than one rank, else None."""
        return self.data_group if self.dp_size > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes the run folder."""
        return self.rank == 0

    @property
    def is_first_replica(self) -> bool:
        """Whether this is the first of its data-parallel ranks."""
        return self.dp_rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any rank. Collective."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value.item())

    def maxima(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all ranks, in one reduction. Collective."""
        if self.world_size == 1:
            return values
        largest = torch.tensor(values)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(largest.tolist())

    def mean(self, value: torch.Tensor) -> float:
        """Mean of a scalar over data-parallel ranks. Collective.

        Sums of a few fp32 numbers are exact in fp64: in whatever order they are added, the bits are the same.
        """
        total = value.detach().float().double().reshape(1)
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return float(total.item()) / self.dp_size

    def known_mean(self, value: float | None) -> float:
        """Mean over the ranks that know a value; NaN if none does. Collective."""
        known = torch.tensor([0.0 if value is None else value, float(value is not None)], dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(known, group=self.control)
        return float(known[0] / known[1]) if known[1] else float("nan")

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def told(self, numbers: list[int]) -> list[int]:
        """What the first rank of the last stage gives, on every rank; as many numbers everywhere. Collective."""
        if self.world_size == 1:
            return numbers
        value = torch.tensor(numbers)
        dist.broadcast(value, (self.stages - 1) * self.dp_size * self.tensor_size, group=self.control)
        return value.tolist()

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def agree(self, action: Callable[[], T]) -> T:
        """Run ``action``; if it raises ``UserError`` on any rank, raise one on all. Collective.

        ``action`` must not contain collectives: a rank that fails would leave the others in them.
        """
        result, error = None, None
        try:
            result = action()
        except UserError as caught:
            error = caught
        if not self.any(error is not None):  # the usual case costs one number, so that every step can afford it
            return result  # type: ignore[return-value]
        errors = self.gather_objects(error)
        failed = [rank for rank, other in enumerate(errors) if other is not None]
        first = errors[failed[0]]
        if len(failed) == self.world_size:
            raise first
        raise type(first)(f"rank {failed[0]} of {self.world_size}: {first}")

    def mpu(self) -> Any:
        """What DeepSpeed calls a model-parallel unit; None where there is nothing to tell."""
        return _ModelParallelUnit(self) if self.tensor_size > 1 else None


class _ModelParallelUnit:
    """The layout in the words of DeepSpeed's ``mpu`` interface."""

    def __init__(self, layout: Layout):
        self._layout = layout

    def get_model_parallel_rank(self) -> int:
        return self._layout.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self._layout.tensor_size

    def get_model_parallel_group(self) -> Any:
        return self._layout.tensor_group

    def get_data_parallel_rank(self) -> int:
        return self._layout.dp_rank

    def get_data_parallel_world_size(self) -> int:
        return self._layout.dp_size

    def get_data_parallel_group(self) -> Any:
        return self._layout.data_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group


def make_groups(world: int, rank: int, tensor: int, stages: int) -> dict[str, Any]:
    """Create the process groups of every rank, in the same order everywhere; return this rank's. Collective."""
    data = world // (tensor * stages)
    places = [Coordinates.of(other, data, tensor) for other in range(world)]
    own = places[rank]
    groups: dict[str, Any] = {"data_group": None, "tensor_group": None, "tensor_control": None}
    for stage in range(stages):
        for column in range(tensor):
            members = [r for r, p in enumerate(places) if (p.stage, p.tensor) == (stage, column)]
            made = dist.new_group(members)
            if (own.stage, own.tensor) == (stage, column):
                groups["data_group"] = made
        for row in range(data if tensor > 1 else 0):
            members = [r for r, p in enumerate(places) if (p.stage, p.data) == (stage, row)]
            made, control = dist.new_group(members), dist.new_group(members, backend="gloo")
            if (own.stage, own.data) == (stage, row):
                groups["tensor_group"], groups["tensor_control"] = made, control
    return groups


def set_device(device: torch.device) -> None:
    """Make ``device`` this process's own, for torch and DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed guesses otherwise, and may guess a GPU for a CPU run
    if device.type == "cuda":
        torch.cuda.set_device(device)
