"""What a step's time is compared with: FLOPs of active weights, FLOPs that backends compute, what devices can do.

*Active* FLOPs are what the model itself needs: products of the weights that are active, attention, head, forward and
backward, nothing twice. FLOP/s done and MFU are of these, so that a sparse run does not look better for zeros that it
multiplies. *Computed* ones are what the backends do in fact, whole matrices or active tiles, recomputation included.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from pretrain.numbers import magnitude
from pretrain.plan import Rank, stages_of
from pretrain.plan.compute import active_flops, flops
from pretrain.plan.devices import device_of
from pretrain.precision import DTYPES
from smet import compute

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

SIDE = 512
"""Of the square matrices that a processor multiplies to show what it reaches."""


@dataclass(frozen=True)
class Peak:
    """What one device can do."""

    flops: float | None
    """Operations per second of products in the run's precision; None where nobody says."""
    source: str
    """Where that is from, or why it is not known."""


def peak_of(device: torch.device, precision: str) -> Peak:
    """The peak of ``device``: a GPU's by its name (``pretrain.plan.devices``), a processor's measured here."""
    if device.type != "cuda":
        reached = measured(DTYPES[precision], torch.get_num_threads())
        return Peak(reached, f"{SIDE} x {SIDE} matrices in {precision}, measured")
    name = torch.cuda.get_device_name(device)
    found = device_of(name)
    if found is None:
        return Peak(None, f"no peak is known of {name}")
    if precision != "bf16":
        return Peak(None, f"the peak that is known of {name} is of bf16, and train.precision is {precision}")
    return Peak(found[1].flops, f"bf16 peak of {found[0]}")


@lru_cache(maxsize=8)
def measured(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of this process's processors in one product, the best of a few; draws no random numbers."""
    matrix = torch.ones(SIDE, SIDE, dtype=dtype)
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(seconds)


def computed_flops(trainer: Trainer) -> int:
    """FLOPs of this rank in one step as its backends do them: whole matrices or active tiles, and what activation
    checkpointing computes again."""
    config, layout = trainer.config, trainer.layout
    micro_batches, blocks = config.accumulation(layout.dp_size), stages_of(config)[layout.stage]
    whole = flops(Rank(config, blocks, layout.dp_size, micro_batches, layout.stage, dense=True)).hardware
    tokens = config.train.micro_batch_size * config.data.seq_length
    dtype = DTYPES[config.train.precision]
    passes = 4 if config.train.activation_checkpointing else 3
    for layer in trainer.topology.all_layers.values():
        done = compute.chosen(layer, tokens, dtype).flops(layer, tokens) * passes // 3
        whole += micro_batches * (done - 2 * passes * tokens * layer.in_features * layer.out_features)
    return whole


@dataclass(frozen=True)
class Yardstick:
    """What a step's time is compared with, over all ranks."""

    fixed: int
    """FLOPs of a step that every density needs."""
    sparse: int
    """FLOPs of a step of the weights that sparse layers store."""
    computed: int
    """FLOPs that backends do."""
    devices: int
    peak: float | None
    """FLOP/s of all devices together; None where one of them is not known."""
    source: str
    """Of the peak."""

    def figures(self, seconds: float, share: float = 1.0) -> dict[str, float]:
        """A step's figures for the record; ``share``: of stored weights that are open."""
        active = self.fixed + self.sparse * share
        found = {
            "tflops": active / seconds / self.devices / 1e12,
            "hardware_tflops": self.computed / seconds / self.devices / 1e12,
        }
        if self.peak is not None:
            found |= {"mfu": active / seconds / self.peak, "hfu": self.computed / seconds / self.peak}
        return found

    def describe(self) -> str:
        """For the first lines of a run."""
        active = self.fixed + self.sparse
        each = magnitude(self.peak / self.devices, "FLOP/s") + " per device" if self.peak else "MFU is left out"
        needed, done = magnitude(active, "FLOP"), magnitude(self.computed, "FLOP")
        return f"{needed} per step of active weights, {done} computed; {each} ({self.source})"


def yardstick(trainer: Trainer) -> Yardstick:
    """What this run's steps are measured against. Collective."""
    config, layout = trainer.config, trainer.layout
    active, peak = active_flops(config), peak_of(layout.device, config.train.precision)
    ranks = layout.gather_objects((computed_flops(trainer), peak.flops, peak.source))
    known = [one for _, one, _ in ranks if one is not None]
    unknown = next((source for _, one, source in ranks if one is None), None)
    return Yardstick(
        active.other, active.sparse, sum(computed for computed, *_ in ranks), layout.world_size,
        None if unknown else sum(known), unknown or peak.source,
    )  # fmt: skip
