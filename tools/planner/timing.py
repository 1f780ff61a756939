"""Predicted time of an optimizer step, from a rank's plan and what the machine achieves."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.plan import RankPlan, plan_rank, stages_of
from pretrain.plan.memory import width_of, zero_settings
from smet.kernels import sides

OPTIMIZER_BYTES = 31
"""Bytes that the fused optimizer reads and writes per weight of a partition: master and moments both ways,
gradient, birth round, and the rounded weight."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the hardware achieves in practice, per GPU. The defaults are round figures for an H100, not measured.

    Raises:
        ConfigError: a figure that nothing can be reckoned with.
    """

    flops: float = 400e12
    """Floating-point operations per second of large bf16 products."""
    memory_bandwidth: float = 2e12
    """Bytes per second of GPU memory, in kernels that only move data."""
    node_bandwidth: float = 300e9
    """Bytes per second that a GPU sends to others in its machine."""
    network_bandwidth: float = 40e9
    """Bytes per second that a GPU sends to other machines."""
    host_bandwidth: float = 25e9
    """Bytes per second between a GPU and host memory, for ZeRO-Offload."""
    host_memory_bandwidth: float = 30e9
    """Bytes per second of host memory, for the processor's share that one rank has."""
    gpus_per_node: int = 8
    overlap: float = 0.5
    """Fraction of compute time behind which traffic hides that runs in the background."""

    def __post_init__(self) -> None:
        problems = [
            f"--{part.name.replace('_', '-')} is {getattr(self, part.name):g}, expected more than nothing"
            for part in fields(self)
            if part.name != "overlap" and not 0 < getattr(self, part.name) < math.inf
        ]
        if not 0 <= self.overlap <= 1:
            problems.append(f"--overlap is {self.overlap:g}, expected a fraction from 0 to 1")
        if problems:
            raise ConfigError(problems)

    def describe(self, offloaded: bool = False, source: str = "Assumed per GPU") -> str:
        """What predictions rest on, in one sentence; with host memory, if the optimizer is ``offloaded``."""
        host = ""
        if offloaded:
            within = self.host_memory_bandwidth / 1e9
            host = f"{self.host_bandwidth / 1e9:g} GB/s to host memory and {within:g} GB/s within it; "
        return (
            f"{source}: {self.flops / 1e12:.3g} TFLOP/s in products, {self.memory_bandwidth / 1e12:.3g} TB/s of "
            f"memory, {self.node_bandwidth / 1e9:.3g} GB/s within a machine of {self.gpus_per_node}, "
            f"{self.network_bandwidth / 1e9:g} GB/s between machines; {host}background traffic hides behind "
            f"{self.overlap:.0%} of the products' time. Predicted, not measured."
        )


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on the slowest stage, by what they go into. They add up to ``total``."""

    products: float
    expanding: float
    """Making dense weights and picking active gradients."""
    tensor: float
    pipeline: float
    bubble: float
    """Waiting for the pipeline to fill and drain."""
    data: float
    """Gradients, weights and masks, as far as they do not hide behind compute."""
    optimizer: float
    update: float
    """A topology update's traffic, spread over the steps between two."""

    @property
    def total(self) -> float:
        """Seconds per optimizer step."""
        return sum(vars(self).values())


def step_time(config: RunConfig, world: int, plan: RankPlan, machine: Machine, dense: bool = False) -> StepTime:
    """Predict from one stage's plan; the step takes as long as the slowest stage's.

    Products run at ``machine.flops``, over tiles slower by as much as was measured; tensor- and pipeline-parallel
    traffic is never hidden, nor are ZeRO-1's and 2's gradients and weights unless ``overlap_comm`` is on; masks and
    ZeRO-3's traffic hide up to ``machine.overlap``.
    """
    parallel, sparsity = config.parallel, config.sparsity
    data = world // (parallel.tensor * parallel.pipeline)
    micro_batches = config.accumulation(data)
    products = sum(products_by_backend(config, plan, machine).values())
    expanding = 0.0 if dense else _expanding(config, plan, micro_batches) / machine.memory_bandwidth
    tensor = plan.sent["tensor"] / _speed(parallel.tensor, machine)
    pipeline = plan.sent["pipeline"] / _speed(parallel.tensor * data + 1, machine)
    passing = products + expanding + tensor + pipeline
    across = _speed(parallel.tensor * data, machine)
    hidden = {"masks"} | ({"gradients", "weights"} if parallel.zero_stage == 3 else set())
    if zero_settings(config).get("overlap_comm"):
        hidden.add("gradients")
    seconds = {kind: plan.sent[kind] / across for kind in ("gradients", "weights", "masks")}
    background = sum(time for kind, time in seconds.items() if kind in hidden)
    shown = sum(time for kind, time in seconds.items() if kind not in hidden)
    return StepTime(
        products=products,
        expanding=expanding,
        tensor=tensor,
        pipeline=pipeline,
        bubble=passing * (parallel.pipeline - 1) / micro_batches,
        data=shown + max(0.0, background - machine.overlap * products),
        optimizer=_optimizing(plan, machine),
        update=plan.sent_per_update / across / max(1, sparsity.update_interval),
    )


def products_by_backend(config: RunConfig, plan: RankPlan, machine: Machine) -> dict[str, float]:
    """Seconds of the products of one step, by what multiplies (``smet.compute``)."""
    over_tiles = plan.flops.over_tiles
    return {
        "tiles": slower_over_tiles(config) * over_tiles / machine.flops,
        "dense": (plan.flops.hardware - over_tiles) / machine.flops,
    }


def slower_over_tiles(config: RunConfig) -> float:
    """How many times as long an operation takes over tiles of this size as in a product of whole matrices."""
    if config.train.device == "cpu":
        return 1 / sides.CPU_DENSEST
    return sides.BREAK_EVEN.get(min(config.sparsity.block), 1.0)


def _optimizing(plan: RankPlan, machine: Machine) -> float:
    """One pass over the partition; in host memory, fp32 gradients come down to it and weights go back up."""
    weights = plan.kinds["master"] / 4
    if not plan.in_host_memory:
        return OPTIMIZER_BYTES * weights / machine.memory_bandwidth
    return OPTIMIZER_BYTES * weights / machine.host_memory_bandwidth + 8 * weights / machine.host_bandwidth


def _speed(span: int, machine: Machine) -> float:
    """Bytes per second of a group of neighbouring ranks that spans ``span`` of them."""
    return machine.node_bandwidth if span <= machine.gpus_per_node else machine.network_bandwidth


def _expanding(config: RunConfig, plan: RankPlan, micro_batches: int) -> float:
    """Bytes moved to expand every sparse layer that is multiplied whole for each product's use, and to compress its
    gradient."""
    width = width_of(config)
    total, stored, masks = plan.expanded
    once = width * (total + stored) + masks
    builds = 3 if config.train.activation_checkpointing else 2
    if config.sparsity.weight_residency == "dense":
        return once + micro_batches * once
    return micro_batches * (builds + 1) * once


def slowest_stage(
    config: RunConfig, world: int, machine: Machine, dense: bool = False, alike: bool = True
) -> tuple[list[RankPlan], StepTime]:
    """The plans of the stages, and the time of the slowest.

    Args:
        alike: False leaves out stages that hold what an earlier one holds; those have fewer micro-batches in flight.
    """
    stages = stages_of(config)
    numbers = list(range(len(stages)))
    if not alike:
        kinds = {
            (number == 0, number == numbers[-1], *Counter(block.name.rstrip("0123456789") for block in stages[number])
             .items()): number
            for number in reversed(numbers)
        }  # fmt: skip
        numbers = sorted(kinds.values())
    plans = [plan_rank(config, world, number, dense, stages[number]) for number in numbers]
    return plans, max((step_time(config, world, plan, machine, dense) for plan in plans), key=lambda time: time.total)
