"""Bytes at rest per rank: measured from live tensors, and planned from sizes alone.

Kinds: weights, gradients (as they stand when the last backward of a step is done), master, moments,
ages, masks. Parts: ``sparse`` (the layers that were made sparse) and ``dense`` (everything else).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from smet.bank import MaskBank
from smet.dtensors import own
from smet.linear import SparseLinear
from smet.store import ParameterStore

KINDS = ("weights", "gradients", "master", "moments", "ages", "masks")
OFFLOADED = ("gradients", "master", "moments", "ages")
"""Kinds that ZeRO-Offload keeps in host memory."""

ADAMW_STATE = 8
"""Bytes per weight of AdamW's two moments."""

Table = dict[str, dict[str, int]]
"""part -> kind -> bytes."""


def measure(
    store: ParameterStore, bank: MaskBank, layers: dict[str, SparseLinear], means: Iterable[Tensor] = ()
) -> Table:
    """Bytes that this rank's live tensors hold now. Memory shared by several tensors counts once.

    Args:
        means: mean dense gradients that a criterion needs (``smet.growth``); they count as moments.
    """
    table: Table = {part: dict.fromkeys(KINDS, 0) for part in ("sparse", "dense")}
    seen: set[int] = set()
    for kind, group, tensor in store.live_tensors():
        part = "sparse" if group.startswith("sparse") else "dense"
        table[part][kind] += bytes_held(tensor, seen)
    for tensor in means:
        table["sparse"]["moments"] += bytes_held(own(tensor), seen)
    for tensor in masks_held(layers.values(), bank):
        table["sparse"]["masks"] += bytes_held(tensor, seen)
    return table


def masks_held(layers: Iterable[SparseLinear], bank: MaskBank) -> list[Tensor]:
    """The packed masks of ``layers``, wherever they are."""
    own_bits = [bits for layer in layers for bits in (layer.mask, layer.closed) if bits is not None]
    return [*own_bits, *bank.tensors()]


def bytes_held(tensor: Tensor, seen: set[int]) -> int:
    """Bytes of ``tensor``, or 0 where ``seen`` has its memory; then it has."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen or tensor.numel() == 0:
        return 0
    if tensor.numel() * tensor.element_size() < storage.nbytes():
        return tensor.numel() * tensor.element_size()  # a view of a larger buffer: only what it covers
    seen.add(storage.data_ptr())
    return storage.nbytes()


@dataclass(frozen=True, kw_only=True)
class Part:
    """What decides bytes at rest of one part of a model on one rank."""

    groups: tuple[tuple[tuple[int, ...], bool], ...]
    """Optimizer groups: elements stored of each of their parameters, and whether these age."""
    buckets: tuple[int, ...] = ()
    """Bytes of the packed masks that are sharded together."""
    means: tuple[tuple[int, int], ...] = ()
    """Tiles of each layer whose mean dense gradient is kept, and weights in a tile."""
    closed: int = 0
    """Bytes that say which stored tiles are closed, where density falls; whole on every rank."""
    persistent: int = 0
    """ZeRO-3 keeps parameters of at most so many elements whole on every rank, beside their partitions."""


def partition(lengths: Sequence[int], stage: int, ranks: int) -> tuple[int, int]:
    """(elements of all ranks together, elements of one rank) of an optimizer group under ZeRO ``stage``.

    Both with DeepSpeed's padding: stages 1 and 2 fill a group up to a multiple of 2 x ranks, stage 3 each
    parameter to a multiple of ranks.
    """
    if stage == 3:
        share = sum(-(-length // ranks) for length in lengths)
        return share * ranks, share
    whole = -(-sum(lengths) // (2 * ranks)) * 2 * ranks
    return whole, whole // ranks


def part_bytes(tiles: int, size: int, ranks: int) -> int:
    """Bytes of one rank's part of an fp32 gradient of ``tiles`` tiles of ``size`` weights (``smet.growth``)."""
    return 4 * -(-tiles // ranks) * size


def plan(
    part: Part,
    stage: int,
    ranks: int,
    sixteen_bit: bool,
    masks_sharded: bool = True,
    gradient: int = 0,
    state: int = ADAMW_STATE,
    fully_sharded: bool = False,
) -> dict[str, int]:
    """Bytes per kind on one rank, under ZeRO ``stage`` over ``ranks`` data-parallel ranks.

    Gradients are what is left at the accumulation boundary, where every stage has reduced them to its own
    partition; between micro-batches stage 1 holds whole gradients.

    Args:
        stage: 0 = plain torch, DistributedDataParallel too: all is whole on each rank (``ranks`` is 1), and only
            16-bit weights have master weights beside them.
        gradient: bytes per weight of gradients, of all that ZeRO-Offload keeps; 0 = they are as wide as weights.
        state: bytes per weight that the optimizer's formula declares.
        fully_sharded: torch's ``fully_shard`` over ``ranks``, at ``stage`` 0: each parameter is cut by itself, as at
            stage 3, and is its own master unless it has 16 bits. It cuts matrices between rows, of which a rank may
            have one more than its share that is counted here.
    """
    width = 2 if sixteen_bit else 4
    gradient = gradient or width
    planned = dict.fromkeys(KINDS, 0)
    for lengths, aged in part.groups:
        whole, share = partition(lengths, 3 if fully_sharded else stage, ranks)
        kept_whole = sum(length for length in lengths if length <= part.persistent)
        planned["weights"] += width * (share if fully_sharded else share + kept_whole if stage == 3 else whole)
        planned["gradients"] += gradient * share
        planned["master"] += 4 * share if stage or sixteen_bit else 0
        planned["moments"] += state * share
        planned["ages"] += share if aged else 0
    planned["moments"] += sum(part_bytes(tiles, size, ranks) for tiles, size in part.means)
    planned["masks"] = part.closed + sum(-(-size // ranks) if masks_sharded else size for size in part.buckets)
    return planned
