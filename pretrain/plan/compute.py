"""FLOPs of one rank. A sparse layer is multiplied over its active tiles, or whole, whatever its density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pretrain.config import RunConfig
from pretrain.models import inventory_of
from pretrain.models.inventory import Kind
from pretrain.plan.sizes import Block, PlannedWeight, Rank, blocks_of
from smet.kernels import sides


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one rank, forward and backward; a multiplication and an addition are two."""

    model: int
    """Of the model's own products and attention scores."""
    hardware: int
    """With what activation checkpointing computes again."""
    over_tiles: int = 0
    """Of these, products over active tiles, which take longer for each operation."""


def flops(rank: Rank) -> Flops:
    """FLOPs of one optimizer step of ``rank``."""
    config, blocks = rank.config, rank.blocks
    tokens = config.train.micro_batch_size * config.data.seq_length * rank.micro_batches
    layers = sum(layer_flops(config, block) for block in blocks if block.is_layer)
    head = sum(head_flops(config) for block in blocks if block.kind is Kind.HEAD)
    over_tiles = [weight for weight in rank.sparse if is_over_tiles(config, weight)]
    layers -= sum(2 * (weight.total - weight.stored) for weight in over_tiles)
    passes = 4 if config.train.activation_checkpointing else 3
    return Flops(
        round(tokens * 3 * (layers + head)), round(tokens * (passes * layers + 3 * head)),
        round(tokens * passes * sum(2 * weight.stored for weight in over_tiles)),
    )  # fmt: skip


@dataclass(frozen=True)
class Active:
    """FLOPs of one optimizer step over all ranks that the model itself needs: forward and backward, nothing twice."""

    sparse: int
    """Of the active weights of sparse layers, whoever multiplies."""
    other: int
    """Of dense layers, attention over half of the sequence (causal), and the head."""


def active_flops(config: RunConfig) -> Active:
    """What "FLOP/s done" and MFU count: products of weights that are active, and of no others."""
    whole = replace(config, parallel=replace(config.parallel, tensor=1, pipeline=1, sequence=False))
    blocks = blocks_of(whole)
    tokens = config.train.global_batch_size * config.data.seq_length
    sparse = [weight for block in blocks if block.is_layer for weight in block.weights if weight.sparse]
    everything = sum(layer_flops(whole, block) for block in blocks if block.is_layer) + head_flops(whole)
    inactive = 2 * sum(weight.total for weight in sparse)
    return Active(
        sparse=tokens * 3 * 2 * sum(weight.stored for weight in sparse),
        other=round(tokens * 3 * (everything - inactive)),
    )


def is_over_tiles(config: RunConfig, weight: PlannedWeight) -> bool:
    """Whether only the active tiles of ``weight`` are multiplied.

    The run file says so, or what is likely faster where it leaves that open. Backends of one's own are taken to
    multiply whole matrices.
    """
    sparsity, on_cpu = config.sparsity, config.train.device == "cpu"
    if not weight.sparse or weight.stored == weight.total or sparsity.compute not in ("auto", "tiles"):
        return False
    if not (sides.on_cpu if on_cpu else sides.on_gpu)(sparsity.block):
        return False
    density, tokens = weight.stored / weight.total, config.train.micro_batch_size * config.data.seq_length
    likely = density <= sides.CPU_DENSEST if on_cpu else sides.worth_it_on_gpu(sparsity.block, density, tokens)
    return sparsity.compute == "tiles" or likely


def layer_flops(config: RunConfig, block: Block) -> float:
    """Of one decoder layer's forward pass per token, were it dense: products, and attention over half of the sequence
    (causal)."""
    products = 2 * sum(weight.total for weight in block.weights if weight.role.linear)
    mixed = inventory_of(config.model).shape.mixed / config.parallel.tensor
    return products + 2 * config.data.seq_length * mixed


def head_flops(config: RunConfig) -> float:
    """Of the head's forward pass per token."""
    shape = inventory_of(config.model).shape
    return 2 * shape.vocabulary * shape.width / config.parallel.tensor


def block_costs(config: RunConfig, blocks: Sequence[Block]) -> list[int]:
    """FLOPs per token of each block, forward and backward, were it dense: a cut is not to depend on what multiplies."""
    again = 4 if config.train.activation_checkpointing else 3
    head = round(3 * head_flops(config))
    return [
        round(again * layer_flops(config, block)) if block.is_layer else head if block.kind is Kind.HEAD else 0
        for block in blocks
    ]
