"""Bytes of one rank beyond its weights at rest: activations, and what exists for a moment only.

Formulas count the tensors that autograd saves and the largest temporaries beside them; tests compare them with
the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pretrain.config import RunConfig
from pretrain.config.passed_on import WIDTHS, sent_in, summed_in
from pretrain.models import inventory_of
from pretrain.models.inventory import Kind, Place
from pretrain.plan.compute import is_over_tiles
from pretrain.plan.sizes import Block, PlannedWeight, Rank, blocks_of
from smet.bank import bucket_key
from smet.criteria import DENSE, mask_needs, update_needs
from smet.memory import Part, part_bytes

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default ``reduce_bucket_size``, in elements."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's defaults for ``stage3_max_live_parameters`` and ``sub_group_size``, in elements."""


def zero_settings(config: RunConfig) -> dict[str, Any]:
    """The run's own ``zero_optimization`` keys."""
    return dict(config.deepspeed.get("zero_optimization", {}))


def offloaded(config: RunConfig) -> bool:
    """Whether ZeRO-Offload keeps the optimizer's partition in host memory."""
    device = (zero_settings(config).get("offload_optimizer") or {}).get("device", "none")
    return bool(device != "none")


def width_of(config: RunConfig) -> int:
    """Bytes of one weight, gradient or activation."""
    return WIDTHS[config.train.precision]


def sent_width(config: RunConfig) -> int:
    """Bytes of one gradient on its way between ranks."""
    return WIDTHS[sent_in(config.deepspeed, config.train.precision)]


def gradient_at_rest(config: RunConfig, ranks: int) -> int:
    """Bytes per weight of a rank's partition of gradients at the end of a step.

    ZeRO-Offload has fp32 ones for the step in host memory, beside those that are summed. Stage 1 sums on the GPU, stage
    2 in host memory if there is more than one micro-batch, or other numbers than the weights' are asked for. What two
    ranks share of a parameter is left out at stage 2; it is small where parameters are many.

    Args:
        ranks: data-parallel ranks.
    """
    stage, precision = config.parallel.zero_stage, config.train.precision
    numbers = summed_in(config.deepspeed, precision)
    summed = WIDTHS[numbers]
    if not offloaded(config):
        return summed
    summing = stage == 3 or (stage == 2 and (config.accumulation(ranks) > 1 or numbers != precision))
    return 4 + summed if summing else 4


def dense_model_bytes(config: RunConfig) -> int:
    """Bytes in rank 0's host memory of the dense model that first masks ask before training; 0 where none do.

    Weights and gradients in fp32, and either one sample's gradients beside their sum, or (SynFlow) a copy of the
    weights; activations of one sample are not counted.
    """
    if not mask_needs(config.sparsity) & DENSE:
        return 0
    weights = sum(block.elements(stored=False) for block in blocks_of(_on_one_rank(config)))
    return 12 * weights


def _on_one_rank(config: RunConfig) -> RunConfig:
    return replace(config, parallel=replace(config.parallel, tensor=1, pipeline=1, sequence=False))


def parts_of(rank: Rank) -> dict[str, Part]:
    """The sparse layers and everything else, as ``smet.memory.plan`` wants them."""
    config = rank.config
    groups: dict[str, list[int]] = {}
    means: list[tuple[int, int]] = []
    size = config.sparsity.block[0] * config.sparsity.block[1]
    averaged = "moment" in update_needs(config.sparsity)
    aged: set[str] = set()
    buckets: dict[str, int] = {}
    for weight in rank.weights:
        groups.setdefault(weight.group, []).append(rank.stored(weight))
        if weight.aged and not rank.dense:
            aged.add(weight.group)
            means += [(weight.total // size, size)] if averaged else []
        if weight.mask_bytes and not rank.dense:
            key = bucket_key(weight.name)
            buckets[key] = buckets.get(key, 0) + weight.mask_bytes
    threshold = zero_settings(config).get("stage3_param_persistence_threshold", inventory_of(config.model).shape.width)
    return {
        part: Part(
            groups=tuple(
                (tuple(lengths), name in aged)
                for name, lengths in groups.items()
                if name.startswith("sparse") == (part == "sparse")
            ),
            buckets=tuple(buckets.values()) if part == "sparse" else (),
            means=tuple(means) if part == "sparse" else (),
            closed=sum(weight.closed_bytes for weight in rank.sparse) if part == "sparse" else 0,
            persistent=threshold,
        )
        for part in ("sparse", "dense")
    }


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes saved for the backward pass of one micro-batch."""

    layers: int
    """All decoder layers of this rank, as they stay until their backward pass."""
    recomputed: int
    """One decoder layer while it is computed again; 0 without activation checkpointing."""
    ends: int
    """Final norm, head and loss, where this rank has them; they live for one micro-batch at a time."""


def activations(config: RunConfig, blocks: Sequence[Block], checkpointing: bool, sequence: bool) -> Activations:
    """Bytes saved per micro-batch by the rank that holds ``blocks``."""
    inventory, width, tensor = inventory_of(config.model), width_of(config), config.parallel.tensor
    place = Place(
        width=width, tensor=tensor, sequence=sequence, documents=config.data.reset_attention,
        permuted=config.sparsity.is_permuted,
    )  # fmt: skip
    shape, tokens = inventory.shape, config.train.micro_batch_size * config.data.seq_length
    layers = [tokens * inventory.saved(block.whole, place) for block in blocks if block.is_layer]
    stream = tokens * shape.width / (tensor if sequence else 1) * width
    # Attention within documents adds one bias to the scores, the same in all layers.
    bias = tokens * config.data.seq_length * width if config.data.reset_attention and layers else 0
    ends = 0.0
    for block in blocks:
        if block.kind is Kind.NORM:
            ends += tokens * inventory.saved(block.whole, place)
        elif block.kind is Kind.HEAD:
            # The loss keeps the gradient of the logits; split over ranks, it keeps fp32 probabilities.
            ends += tokens * (width if tensor == 1 else 4) * shape.vocabulary / tensor
    return Activations(
        layers=round(len(layers) * stream if checkpointing else sum(layers)) + bias,
        recomputed=round(max(layers)) if checkpointing and layers else 0, ends=round(ends),
    )  # fmt: skip


def transients(rank: Rank) -> dict[str, int]:
    """Bytes by name of what exists for a moment beside everything else."""
    config, width, sparse, zero = rank.config, width_of(rank.config), rank.sparse, zero_settings(rank.config)
    tokens = config.train.micro_batch_size * config.data.seq_length
    found: dict[str, int] = {}
    # Backward of a sparse layer holds its dense weight and its dense gradient at once; over tiles there is neither, but
    # where a criterion asks for the gradient.
    whole = [weight for weight in sparse if not is_over_tiles(config, weight)]
    found["dense layer"] = 2 * width * max((weight.total for weight in whole), default=0)
    if len(whole) < len(sparse):
        found["layer over tiles"] = width * max(weight.stored for weight in sparse)
        if update_needs(config.sparsity) & {"gradient", "moment"}:
            found["dense gradient of a layer"] = width * max((weight.total for weight in rank.aged), default=0)
    if whole and config.sparsity.weight_residency == "dense":
        found["dense weights kept"] = width * sum(weight.total for weight in whole)
    found["gathered masks"] = _two_buckets(rank)
    if any(block.kind is Kind.HEAD for block in rank.blocks):
        vocabulary = inventory_of(config.model).shape.vocabulary
        found["logits"] = _loss_bytes(config, tokens * vocabulary // config.parallel.tensor)
    lengths = [rank.stored(weight) for weight in rank.weights]
    stored, largest = sum(lengths), max(lengths)
    found["gradients in flight"] = _gradients_in_flight(rank, stored)
    if rank.zero_stage == 3 and rank.data_ranks > 1:
        found["gathered weights"] = width * min(
            stored, max(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS), largest)
        )
    share = -(-stored // rank.data_ranks)
    if not offloaded(config):
        group = zero.get("sub_group_size", LIVE_PARAMETERS)
        found["optimizer step"] = 4 * (min(share, group) if rank.zero_stage == 3 else share)
    elif rank.zero_stage < 3:
        found["gradient on its way out"] = width * largest
    found["topology update"] = topology_update(config, sparse, rank.data_ranks)
    found |= _asked_for(rank)
    return {name: size for name, size in found.items() if size}


def _asked_for(rank: Rank) -> dict[str, int]:
    """Sums of gradients that criteria need, in the step that ends in an update or in each."""
    sparsity, ranks, aged = rank.config.sparsity, rank.data_ranks, rank.aged
    needed, size = update_needs(sparsity), sparsity.block[0] * sparsity.block[1]
    found = {}
    if needed & {"gradient", "moment"}:
        found["gradients to grow by"] = sum(part_bytes(weight.total // size, size, ranks) for weight in aged)
    if "active_gradient" in needed:
        found["gradients to prune by"] = sum(part_bytes(weight.stored // size, size, ranks) for weight in aged)
    return found


def _loss_bytes(config: RunConfig, logits: int) -> int:
    """Beside what the loss saves: the logits; of the split loss, whose probabilities are fp32, their gradient, and the
    logits in both widths."""
    if config.parallel.tensor > 1:
        return (4 + width_of(config)) * logits
    return width_of(config) * logits


def _two_buckets(rank: Rank) -> int:
    if rank.data_ranks == 1 or rank.config.sparsity.mask_residency == "replicated":
        return 0
    buckets: dict[str, int] = {}
    for weight in rank.sparse:
        key = bucket_key(weight.name)
        buckets[key] = buckets.get(key, 0) + weight.mask_bytes
    return 2 * max(buckets.values(), default=0)


def _gradients_in_flight(rank: Rank, stored: int) -> int:
    """Gradients beside the partition that is counted at rest: whole ones, and buckets to reduce.

    A bucket is allocated whole, unless gradients stay where they are. Stage 3 lays what is in it out anew by rank;
    below it what is sent in other numbers is copied.
    """
    config, zero, width = rank.config, zero_settings(rank.config), width_of(rank.config)
    size, last = int(zero.get("reduce_bucket_size", REDUCE_BUCKET)), rank.zero_stage == 3
    filled, sent = min(size, stored), sent_width(config)
    moved = zero.get("contiguous_gradients", True) or (offloaded(config) and not last)
    two = moved and not last and zero.get("overlap_comm", False)
    bucket = (sent if last else width) * size * (1 + two) if moved else width * filled
    copied = sent * filled if last or sent != width else 0
    at_rest = 0 if offloaded(config) else stored // rank.data_ranks
    whole = width * (stored - at_rest) if rank.zero_stage == 1 else 0
    return bucket + copied + whole


def topology_update(config: RunConfig, sparse: Sequence[PlannedWeight], ranks: int) -> int:
    """Peak bytes of a topology update: that of the largest layer, since layers are worked off one by one.

    Deciding holds masks and places to grow at, per tile, and scores, per active tile; moving state holds
    what has to move where, per active weight. Coefficients are measured; a test measures them again.
    """
    size = config.sparsity.block[0] * config.sparsity.block[1]
    peak = 0
    for weight in (weight for weight in sparse if weight.aged):
        tiles, active = weight.total // size, weight.stored // size
        deciding = 10.2 * tiles + 15 * active + 10 * (weight.stored - active)
        if config.sparsity.is_balanced(config.sparsity.block):
            deciding += 4 * tiles + 9 * active  # places that are taken, and rows and columns of those that move
        moving = 25 * weight.stored
        gathered = 5 * weight.stored if ranks > 1 else 0  # whole master weights and birth rounds
        gathered += 5 * weight.stored if weight.closed_bytes else 0  # what criteria see: the open part of it
        if ranks > 1 and "active_gradient" in update_needs(config.sparsity):
            gathered += 4 * weight.stored
        peak = max(peak, round(max(deciding, moving) + gathered))
    return peak
