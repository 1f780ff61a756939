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
from pretrain.plan.memory import parts_of, sent_width, width_of, zero_settings
from pretrain.plan.sizes import Block, Rank
from pretrain.traffic import ring_bytes
from smet.bank import window
from smet.criteria import update_needs
from smet.memory import Part, part_bytes, partition

LOSS_FLOATS = 3
"""Vocabulary-parallel loss: maximum, sum of exponentials and the wanted logit, per token in fp32."""

DOCUMENT_NUMBER = 4
"""Bytes per token of the documents' numbers, which travel with the stream if attention stays within documents."""


def sending(rank: Rank) -> dict[str, int]:
    """Bytes ``rank`` sends per optimizer step, by kind."""
    parts = list(parts_of(rank).values())
    asked = 0 if rank.data_ranks == 1 else _averaged(rank)
    return {
        "gradients": _gradients(rank, parts),
        "weights": _weights(rank, parts),
        "masks": 0 if rank.dense else _masks(rank, parts[0].buckets),
        "tensor": _tensor(rank.config, rank.blocks) * rank.micro_batches,
        "pipeline": _pipeline(rank),
        **({"topology": asked * rank.micro_batches} if asked else {}),
    }


def _elements(rank: Rank, parts: Sequence[Part]) -> int:
    """Elements of all ranks together, with padding."""
    lengths = [lengths for part in parts for lengths, _ in part.groups]
    return sum(partition(one, rank.zero_stage, rank.data_ranks)[0] for one in lengths)


def _gradients(rank: Rank, parts: Sequence[Part]) -> int:
    width, ranks = sent_width(rank.config), rank.data_ranks
    if rank.zero_stage == 3:
        return rank.micro_batches * ring_bytes("reduce_scatter", width * _elements(rank, parts), ranks)
    plain = sum(length for part in parts for lengths, _ in part.groups for length in lengths)
    return (rank.micro_batches if rank.zero_stage == 2 else 1) * ring_bytes("all_reduce", width * plain, ranks)


def _weights(rank: Rank, parts: Sequence[Part]) -> int:
    config, width, ranks = rank.config, width_of(rank.config), rank.data_ranks
    if ranks == 1:
        return 0
    if rank.zero_stage < 3:
        return ring_bytes("all_gather", width * _elements(rank, parts), ranks)
    persistent = parts[0].persistent
    trace = [
        Traced(weight.name, rank.stored(weight), block.name, block.is_layer)
        for block in rank.blocks
        for weight in block.weights
    ]
    kept = sum(one.elements for one in trace if one.elements <= persistent)
    elements = gathered_elements(trace, zero_settings(config), persistent, config.train.activation_checkpointing)
    return ring_bytes("all_gather", width * (rank.micro_batches * elements + kept), ranks)


def _masks(rank: Rank, buckets: Sequence[int]) -> int:
    """Gathers of whole buckets; two are held, from one step to the next."""
    sparsity, ranks = rank.config.sparsity, rank.data_ranks
    if ranks == 1 or sparsity.mask_residency == "replicated" or not buckets:
        return 0
    state, sent = (frozenset(window(0, None, len(buckets))), 0), 0
    passes = list(one_forward_one_backward(rank.config.parallel.pipeline, rank.pipeline_stage, rank.micro_batches))
    if sparsity.weight_residency == "dense":  # the first forward pass makes weights that later ones find
        passes = [True, *(forward for forward in passes if not forward)]
    sizes = [ring_bytes("all_gather", -(-size // ranks) * ranks, ranks) for size in buckets]
    known: dict[tuple[bool, _Held], tuple[int, _Held]] = {}  # passes repeat themselves, once for each micro-batch
    for forward in passes:
        if (forward, state) not in known:
            known[forward, state] = _gathered_in_pass(sizes, forward, state)
        more, state = known[forward, state]
        sent += more
    return sent


_Held = tuple[frozenset[int], int]
"""Numbers of the buckets that are whole, and of the one that was used last."""


def _gathered_in_pass(sizes: Sequence[int], forward: bool, state: _Held) -> tuple[int, _Held]:
    """Bytes of one pass over all buckets, and what is held afterwards."""
    (held, current), sent = state, 0
    for index in range(len(sizes)) if forward else range(len(sizes) - 1, -1, -1):
        if index == current:
            continue
        wanted = frozenset(window(index, current, len(sizes)))
        sent += sum(sizes[i] for i in wanted - held)
        held, current = wanted, index
    return sent, (held, current)


def one_forward_one_backward(stages: int, pipeline_stage: int, micro_batches: int) -> Iterator[bool]:
    """The passes of one pipeline stage in order: True = forward, False = backward."""
    ahead = min(stages - pipeline_stage, micro_batches)
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


def _pipeline(rank: Rank) -> int:
    """Activations to the next stage, their gradients to the one before, and the tied embedding's gradient."""
    config, blocks, stage = rank.config, rank.blocks, rank.pipeline_stage
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
    sent *= rank.micro_batches
    if shape.tied and stage in (0, stages - 1):
        rows = shape.vocabulary * shape.width // config.parallel.tensor
        sent += ring_bytes("all_reduce", width * rows, 2)
    return sent


def _averaged(rank: Rank) -> int:
    """Dense gradients whose mean is kept are summed over ranks in each micro-batch until the last update."""
    if "moment" not in update_needs(rank.config.sparsity):
        return 0
    return sum(_summed(weight.total, rank) for weight in rank.aged)


def _summed(elements: int, rank: Rank) -> int:
    size = rank.config.sparsity.block[0] * rank.config.sparsity.block[1]
    return ring_bytes(
        "reduce_scatter", part_bytes(elements // size, size, rank.data_ranks) * rank.data_ranks, rank.data_ranks
    )


def topology_sending(rank: Rank) -> int:
    """Bytes ``rank`` sends in one topology update.

    Master weights (fp32) and birth rounds (one byte) of each layer are all-reduced, masks gathered once, and
    the weights published. Gradients (fp32) that criteria need of that step are summed over ranks in each micro-batch;
    of dense ones the tiles' scores are gathered, those of active weights as they are. State that moves between ranks
    is left out: a few entries per boundary.
    """
    config, ranks, micro_batches = rank.config, rank.data_ranks, rank.micro_batches
    if ranks == 1 or rank.dense or not config.sparsity.dynamic:
        return 0
    parts = list(parts_of(rank).values())
    stored = sum(weight.stored for weight in rank.aged)
    total = ring_bytes("all_reduce", 5 * stored, ranks)
    sharded = config.sparsity.mask_residency == "sharded"
    if sharded:
        total += sum(ring_bytes("all_gather", -(-size // ranks) * ranks, ranks) for size in parts[0].buckets[1:])
    needed, size = update_needs(config.sparsity), config.sparsity.block[0] * config.sparsity.block[1]
    for weight in rank.aged:
        scores = ring_bytes("all_gather", part_bytes(weight.total // size, 1, ranks) * ranks, ranks)
        total += scores * len(needed & {"gradient", "moment"})
        if "gradient" in needed and "moment" not in needed:  # else they are summed in every step
            total += micro_batches * _summed(weight.total, rank)
        if "active_gradient" in needed:
            gathered = ring_bytes("all_gather", part_bytes(weight.stored // size, size, ranks) * ranks, ranks)
            total += micro_batches * _summed(weight.stored, rank) + gathered
    if rank.zero_stage < 3:
        total += ring_bytes("all_gather", width_of(config) * _elements(rank, parts), ranks)
    return total
