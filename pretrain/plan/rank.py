"""The plan of one rank: everything that the settings decide about its bytes, traffic and FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.config import RunConfig
from pretrain.formula import state_width
from pretrain.plan.compute import Flops, flops, is_over_tiles
from pretrain.plan.cut import stage_bounds
from pretrain.plan.memory import (
    Activations,
    activations,
    dense_model_bytes,
    gradient_at_rest,
    offloaded,
    parts_of,
    transients,
)
from pretrain.plan.sending import sending, topology_sending
from pretrain.plan.sizes import Block, PlannedWeight, Rank, blocks_of, stage_blocks
from smet.memory import ADAMW_STATE, OFFLOADED, Table, plan


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What a rank of one pipeline stage holds, sends and computes. Bytes unless said otherwise."""

    stage: int
    blocks: tuple[str, ...]
    stored_weights: int
    """Elements stored on this tensor-parallel rank, of which ZeRO may hold a part only."""
    total_weights: int
    """Elements of the same layers, were they dense."""
    sparse_stored: int
    sparse_total: int
    mask_bytes: int
    """Of all sparse layers of this rank, before data-parallel ranks share them."""
    expanded: tuple[int, int, int]
    """All elements, stored ones and mask bytes of those sparse layers whose dense weight is made."""
    at_rest: Table
    """part -> kind -> bytes, as in memory.json."""
    in_host_memory: tuple[str, ...]
    """Kinds of these that are not on the GPU."""
    activations: Activations
    """Of one micro-batch, as the run is set."""
    activation_choices: dict[str, int]
    """Of one micro-batch, by setting: with and without checkpointing and sequence parallelism."""
    in_flight: int
    """Micro-batches whose activations this stage holds at once."""
    transients: dict[str, int]
    sent: dict[str, int]
    """Per optimizer step, by kind."""
    sent_per_update: int
    """Per topology update, on top."""
    flops: Flops
    """Per optimizer step."""
    before_training: int
    """Bytes in rank 0's host memory of the dense model, where the first masks ask it."""

    @property
    def rest(self) -> int:
        """Bytes at rest on the GPU."""
        return sum(size for kind, size in self.kinds.items() if kind not in self.in_host_memory)

    @property
    def host(self) -> int:
        """Bytes at rest in host memory."""
        return sum(self.kinds[kind] for kind in self.in_host_memory)

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes at rest by kind, sparse and other layers together."""
        sparse, other = self.at_rest["sparse"], self.at_rest["dense"]
        return {kind: sparse[kind] + other[kind] for kind in sparse}

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment: of the backward pass, the optimizer step or a topology update."""
        return self._peak(update=True)

    @property
    def peak_between_updates(self) -> int:
        """The same of steps in which no criterion asks for gradients and no topology update follows."""
        return self._peak(update=False)

    def _peak(self, update: bool) -> int:
        now = self.transients
        always = self.rest + now.get("dense weights kept", 0) + now.get("gathered masks", 0)
        sums = ("gradients to grow by", "gradients to prune by")
        asked = sum(now.get(name, 0) for name in sums) if update else 0
        gradient = now.get("dense gradient of a layer", 0) if update else 0
        layer = max(now.get("dense layer", 0), now.get("layer over tiles", 0) + gradient) + self.activations.recomputed
        passing = (
            self.in_flight * self.activations.layers
            + max(layer, self.activations.ends + now.get("logits", 0))
            + now.get("gradients in flight", 0) + now.get("gathered weights", 0)
            + asked + now.get("gradient on its way out", 0)
        )  # fmt: skip
        growing = now.get("topology update", 0) + asked if update else 0
        return always + max(passing, now.get("optimizer step", 0), growing)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers, sums included."""
        return {
            **dataclasses.asdict(self),
            "rest": self.rest,
            "host": self.host,
            "peak": self.peak,
            "sent_total": sum(self.sent.values()),
        }


def _expanded(weights: Sequence[PlannedWeight]) -> tuple[int, int, int]:
    return (
        sum(weight.total for weight in weights),
        sum(weight.stored for weight in weights),
        sum(weight.mask_bytes for weight in weights),
    )


def stages_of(config: RunConfig) -> list[list[Block]]:
    """The blocks of every pipeline stage."""
    blocks, bounds = blocks_of(config), stage_bounds(config)
    return [stage_blocks(config, blocks, bounds, stage) for stage in range(config.parallel.pipeline)]


def plan_rank(
    config: RunConfig, world_size: int, stage: int = 0, dense: bool = False, blocks: Sequence[Block] | None = None
) -> RankPlan:
    """The plan of the ranks of one pipeline stage; all its tensor- and data-parallel ranks are alike.

    Args:
        dense: as if every weight were stored, in ordinary layers: what dense AdamW takes in the same layout.
        blocks: the stage's blocks, where another cut than the planned one is known.

    Raises:
        ConfigError: the global batch does not divide among the data-parallel ranks, or there is no such optimizer.
    """
    parallel, sparsity = config.parallel, config.sparsity
    ranks = world_size // (parallel.tensor * parallel.pipeline)
    micro_batches = config.accumulation(ranks)
    blocks = stages_of(config)[stage] if blocks is None else blocks
    rank = Rank(config, blocks, ranks, micro_batches, stage, dense)
    sharded = sparsity.mask_residency == "sharded"
    half = config.train.precision == "bf16"
    state = ADAMW_STATE if dense else state_width(config)
    at_rest = {
        part: plan(sizes, parallel.zero_stage, ranks, half, sharded, gradient_at_rest(config, ranks), state)
        for part, sizes in parts_of(rank).items()
    }
    choices = {
        ("checkpointing" if again else "no checkpointing") + (", sequence parallel" if split else ""): activations(
            config, blocks, again, split
        )
        for again in (False, True)
        for split in ((False, True) if parallel.tensor > 1 else (False,))
    }
    return RankPlan(
        stage=stage,
        blocks=tuple(block.name for block in blocks),
        stored_weights=sum(block.elements(stored=not dense) for block in blocks),
        total_weights=sum(block.elements(stored=False) for block in blocks),
        sparse_stored=sum(weight.stored for weight in rank.sparse),
        sparse_total=sum(weight.total for weight in rank.sparse),
        mask_bytes=sum(weight.mask_bytes for weight in rank.sparse),
        expanded=_expanded([weight for weight in rank.sparse if not is_over_tiles(config, weight)]),
        at_rest=at_rest,
        in_host_memory=OFFLOADED if offloaded(config) else (),
        activations=activations(config, blocks, config.train.activation_checkpointing, parallel.sequence),
        activation_choices={name: one.layers + one.recomputed + one.ends for name, one in choices.items()},
        in_flight=min(parallel.pipeline - stage, micro_batches),
        transients=transients(rank),
        sent=sending(rank),
        sent_per_update=topology_sending(rank),
        before_training=0 if dense or stage else dense_model_bytes(config),
        flops=flops(rank),
    )
