"""FLOPs of one rank. A sparse layer's products are computed with its dense weight, so density changes none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config import RunConfig
from pretrain.models import inventory_of
from pretrain.models.inventory import Kind
from pretrain.plan.sizes import Block, Rank


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one rank, forward and backward; a multiplication and an addition are two."""

    model: int
    """Of the model's own products and attention scores."""
    hardware: int
    """With what activation checkpointing computes again."""


def flops(rank: Rank) -> Flops:
    """FLOPs of one optimizer step of ``rank``."""
    config, blocks = rank.config, rank.blocks
    tokens = config.train.micro_batch_size * config.data.seq_length * rank.micro_batches
    layers = sum(layer_flops(config, block) for block in blocks if block.is_layer)
    head = sum(head_flops(config) for block in blocks if block.kind is Kind.HEAD)
    again = layers if config.train.activation_checkpointing else 0
    return Flops(round(tokens * 3 * (layers + head)), round(tokens * (3 * (layers + head) + again)))


def layer_flops(config: RunConfig, block: Block) -> float:
    """Of one decoder layer's forward pass per token: products, and attention over half of the sequence (causal)."""
    products = 2 * sum(weight.total for weight in block.weights if weight.role.linear)
    mixed = inventory_of(config.model).shape.mixed / config.parallel.tensor
    return products + 2 * config.data.seq_length * mixed


def head_flops(config: RunConfig) -> float:
    """Of the head's forward pass per token."""
    shape = inventory_of(config.model).shape
    return 2 * shape.vocabulary * shape.width / config.parallel.tensor


def block_costs(config: RunConfig, blocks: Sequence[Block]) -> list[int]:
    """FLOPs per token of each block, forward and backward, as the hardware computes them."""
    again = 4 if config.train.activation_checkpointing else 3
    head = round(3 * head_flops(config))
    return [
        round(again * layer_flops(config, block)) if block.is_layer else head if block.kind is Kind.HEAD else 0
        for block in blocks
    ]
