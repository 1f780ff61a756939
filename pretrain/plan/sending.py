"""Bytes that one rank sends per optimizer step, by kind; the convention is that of ``pretrain.traffic``.

Facts behind the figures (see also ``pretrain.traffic`` and the tests, which count real collectives):
ZeRO-1 all-reduces gradients once per step, ZeRO-2 once per micro-batch, both gather weights once per step;
ZeRO-3 reduce-scatters gradients per micro-batch and gathers weights whenever they are not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.config import RunConfig
from pretrain.models import inventory_of
from pretrain.models.inventory import Kind, Role
from pretrain.plan.gathers import Traced, gathered_elements
from pretrain.plan.memory import parts_of, width_of, zero_settings
from pretrain.plan.sizes import Block
from pretrain.traffic import ring_bytes
from smet.bank import window
from smet.criteria import update_needs
from smet.memory import Part, part_bytes, partition

LOSS_FLOATS = 3
"""Vocabulary-parallel loss: maximum, sum of exponentials and the wanted logit, per token in fp32."""

DOCUMENT_NUMBER = 4
"""Bytes per token of the documents' numbers, which travel with the stream if attention stays within documents."""


def sending(
    config: RunConfig, blocks: Sequence[Block], ranks: int, micro_batches: int, stage: int, dense: bool = False
) -> dict[str, int]:
    """Bytes this rank sends per optimizer step, by kind.

    Args:
        blocks: those of this rank's pipeline stage.
        ranks: data-parallel ranks.
        stage: this rank's pipeline stage.
        dense: as if all layers were ordinary ones.
    """
    parts = list(parts_of(config, blocks, dense).values())
    asked = 0 if dense or ranks == 1 else _averaged(config, blocks, ranks)
    return {
        "gradients": _gradients(config, parts, ranks, micro_batches),
        "weights": _weights(config, blocks, parts, ranks, micro_batches, dense),
        "masks": 0 if dense else _masks(config, parts[0].buckets, ranks, micro_batches, stage),
        "tensor": _tensor(config, blocks) * micro_batches,
        "pipeline": _pipeline(config, blocks, micro_batches, stage),
        **({"topology": asked * micro_batches} if asked else {}),
    }


def _elements(parts: Sequence[Part], zero_stage: int, ranks: int) -> int:
    """Elements of all ranks together, with padding."""
    return sum(partition(lengths, zero_stage, ranks)[0] for part in parts for lengths, _ in part.groups)


def _gradients(config: RunConfig, parts: Sequence[Part], ranks: int, micro_batches: int) -> int:
    stage, width = config.parallel.zero_stage, width_of(config)
    if stage == 3:
        return micro_batches * ring_bytes("reduce_scatter", width * _elements(parts, stage, ranks), ranks)
    plain = sum(length for part in parts for lengths, _ in part.groups for length in lengths)
    return (micro_batches if stage == 2 else 1) * ring_bytes("all_reduce", width * plain, ranks)


def _weights(
    config: RunConfig, blocks: Sequence[Block], parts: Sequence[Part], ranks: int, micro_batches: int, dense: bool
) -> int:
    stage, width = config.parallel.zero_stage, width_of(config)
    if ranks == 1:
        return 0
    if stage < 3:
        return ring_bytes("all_gather", width * _elements(parts, stage, ranks), ranks)
    persistent = parts[0].persistent
    trace = [
        Traced(weight.name, weight.total if dense else weight.stored, block.name, block.is_layer)
        for block in blocks
        for weight in block.weights
    ]
    kept = sum(one.elements for one in trace if one.elements <= persistent)
    elements = gathered_elements(trace, zero_settings(config), persistent, config.train.activation_checkpointing)
    return ring_bytes("all_gather", width * (micro_batches * elements + kept), ranks)


def _masks(config: RunConfig, buckets: Sequence[int], ranks: int, micro_batches: int, stage: int) -> int:
    """Gathers of whole buckets; two are held, from one step to the next."""
    if ranks == 1 or config.sparsity.mask_residency == "replicated" or not buckets:
        return 0
    last = len(buckets) - 1
    held, current, sent = set(window(0, None, len(buckets))), 0, 0
    passes = list(one_forward_one_backward(config.parallel.pipeline, stage, micro_batches))
    if config.sparsity.weight_residency == "dense":  # the first forward pass makes weights that later ones find
        passes = [True, *(forward for forward in passes if not forward)]
    for forward in passes:
        for index in range(len(buckets)) if forward else range(last, -1, -1):
            if index == current:
                continue
            wanted = set(window(index, current, len(buckets)))
            sent += sum(ring_bytes("all_gather", -(-buckets[i] // ranks) * ranks, ranks) for i in wanted - held)
            held, current = wanted, index
    return sent


def one_forward_one_backward(stages: int, stage: int, micro_batches: int) -> Iterator[bool]:
    """The passes of one stage in order: True = forward, False = backward."""
    ahead = min(stages - stage, micro_batches)
    yield from (True for _ in range(ahead))
    for done in range(micro_batches):
        yield False
        if ahead + done < micro_batches:
            yield True


def _tensor(config: RunConfig, blocks: Sequence[Block]) -> int:
    """Of one micro-batch: all-reduces of the stream, or gathers and scatters of it under sequence parallelism.

    Each pair of a gather and a scatter sends what one all-reduce does. Recomputation repeats the forward
    collectives of a layer but its last, whose result nothing needs.
    """
    tensor, train, sequence = config.parallel.tensor, config.train, config.parallel.sequence
    if tensor == 1:
        return 0
    tokens = train.micro_batch_size * config.data.seq_length
    stream = width_of(config) * tokens * inventory_of(config.model).shape.width
    half = ring_bytes("all_gather", stream, tensor)
    halves = vectors = loss = 0
    for block in blocks:
        if block.kind is Kind.HEAD:
            loss += ring_bytes("all_reduce", 4 * LOSS_FLOATS * tokens, tensor)
            continue
        enters, leaves = block.count(Role.SCALE), block.count(Role.ROW)
        halves += 2 * (enters + leaves + block.count(Role.EMBEDDING))
        if block.is_layer and train.activation_checkpointing:
            halves += enters + leaves - 1 if sequence else 2 * (leaves - 1)
        if sequence:
            whole = [weight.total for weight in block.weights if weight.role.cut is None]
            vectors += sum(ring_bytes("all_reduce", width_of(config) * total, tensor) for total in whole)
    return halves * half + vectors + loss


def _pipeline(config: RunConfig, blocks: Sequence[Block], micro_batches: int, stage: int) -> int:
    """Activations to the next stage, their gradients to the one before, and the tied embedding's gradient."""
    stages = config.parallel.pipeline
    if stages == 1:
        return 0
    shape, width = inventory_of(config.model).shape, width_of(config)
    tokens = config.train.micro_batch_size * config.data.seq_length

    # Between final norm and head, a sequence-parallel stream is whole again.
    def message(whole: bool) -> int:
        split = config.parallel.tensor if config.parallel.sequence and not whole else 1
        return width * tokens * shape.width // split

    sent = 0
    if stage < stages - 1:
        sent += message(whole=blocks[-1].kind is Kind.NORM)
        if config.data.reset_attention and blocks[-1].kind is not Kind.NORM:
            sent += DOCUMENT_NUMBER * tokens
    if stage > 0:
        sent += message(whole=blocks[0].kind is Kind.HEAD)
    sent *= micro_batches
    if shape.tied and stage in (0, stages - 1):
        rows = shape.vocabulary * shape.width // config.parallel.tensor
        sent += ring_bytes("all_reduce", width * rows, 2)
    return sent


def _averaged(config: RunConfig, blocks: Sequence[Block], ranks: int) -> int:
    """Dense gradients whose mean is kept are summed over ranks in each micro-batch until the last update."""
    if "moment" not in update_needs(config.sparsity):
        return 0
    return sum(_summed(weight.total, config, ranks) for block in blocks for weight in block.weights if weight.aged)


def _summed(elements: int, config: RunConfig, ranks: int) -> int:
    size = config.sparsity.block[0] * config.sparsity.block[1]
    return ring_bytes("reduce_scatter", part_bytes(elements // size, size, ranks) * ranks, ranks)


def topology_sending(config: RunConfig, blocks: Sequence[Block], ranks: int, micro_batches: int) -> int:
    """Bytes this rank sends in one topology update.

    Master weights (fp32) and birth rounds (one byte) of each layer are all-reduced, masks gathered once, and
    the weights published. Gradients (fp32) that criteria need of that step are summed over ranks in each micro-batch;
    of dense ones the blocks' scores are gathered, those of active weights as they are. State that moves between ranks
    is left out: a few entries per boundary.
    """
    if ranks == 1 or not config.sparsity.dynamic:
        return 0
    parts = list(parts_of(config, blocks).values())
    stored = sum(weight.stored for block in blocks for weight in block.weights if weight.aged)
    total = ring_bytes("all_reduce", 5 * stored, ranks)
    sharded = config.sparsity.mask_residency == "sharded"
    if sharded:
        total += sum(ring_bytes("all_gather", -(-size // ranks) * ranks, ranks) for size in parts[0].buckets[1:])
    needed, size = update_needs(config.sparsity), config.sparsity.block[0] * config.sparsity.block[1]
    for weight in (weight for block in blocks for weight in block.weights if weight.aged):
        scores = ring_bytes("all_gather", part_bytes(weight.total // size, 1, ranks) * ranks, ranks)
        total += scores * len(needed & {"gradient", "moment"})
        if "gradient" in needed and "moment" not in needed:  # else they are summed in every step
            total += micro_batches * _summed(weight.total, config, ranks)
        if "active_gradient" in needed:
            gathered = ring_bytes("all_gather", part_bytes(weight.stored // size, size, ranks) * ranks, ranks)
            total += micro_batches * _summed(weight.stored, config, ranks) + gathered
    width = width_of(config)
    if config.parallel.zero_stage < 3:
        total += ring_bytes("all_gather", width * _elements(parts, config.parallel.zero_stage, ranks), ranks)
    return total
