"""Bytes at rest per rank: measured from live tensors, and planned from sizes alone.

Kinds: weights, gradients (as they stand when the last backward of a step is done), master, moments,
ages, masks. Parts: ``sparse`` (the layers that were made sparse) and ``dense`` (everything else).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smet.bank import MaskBank
from smet.linear import SparseLinear
from smet.store import ParameterStore

KINDS = ("weights", "gradients", "master", "moments", "ages", "masks")

Table = dict[str, dict[str, int]]
"""part -> kind -> bytes."""


def measure(store: ParameterStore, bank: MaskBank, layers: dict[str, SparseLinear]) -> Table:
    """Bytes that this rank's live tensors hold now. Memory shared by several tensors counts once."""
    table: Table = {part: dict.fromkeys(KINDS, 0) for part in ("sparse", "dense")}
    seen: set[int] = set()
    for kind, group, tensor in store.live_tensors():
        part = "sparse" if group.startswith("sparse") else "dense"
        table[part][kind] += _bytes(tensor, seen)
    own_masks = [layer.mask for layer in layers.values() if layer.mask is not None]
    for tensor in [*own_masks, *bank.tensors()]:
        table["sparse"]["masks"] += _bytes(tensor, seen)
    return table


def _bytes(tensor: Tensor, seen: set[int]) -> int:
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen or tensor.numel() == 0:
        return 0
    if tensor.numel() * tensor.element_size() < storage.nbytes():
        return tensor.numel() * tensor.element_size()  # a view of a larger buffer: only what it covers
    seen.add(storage.data_ptr())
    return storage.nbytes()


@dataclass(frozen=True)
class Sizes:
    """What decides bytes at rest of one part of a model on one rank."""

    weights: int
    """Stored weights of this part (active ones only)."""
    mask_bits: int = 0
    aged: bool = False
    gathered: int = 0
    """Weights that ZeRO-3 keeps whole on every rank beside their partitions."""


def plan(sizes: Sizes, stage: int, ranks: int, sixteen_bit: bool, masks_sharded: bool = True) -> dict[str, int]:
    """Bytes per kind on the rank that holds most, under ZeRO ``stage`` over ``ranks`` ranks.

    Padding of partitions (a few elements per parameter group) is left out. Gradients are what is left
    at the accumulation boundary, where every stage has reduced them to its own partition; between
    micro-batches stage 1 holds whole gradients.
    """
    width = 2 if sixteen_bit else 4
    share = -(-sizes.weights // ranks)
    mask_bytes = -(-sizes.mask_bits // 8)
    return {
        "weights": width * (share + sizes.gathered if stage == 3 else sizes.weights),
        "gradients": width * share,
        "master": 4 * share,
        "moments": 8 * share,
        "ages": share if sizes.aged else 0,
        "masks": -(-mask_bytes // ranks) if masks_sharded else mask_bytes,
    }
