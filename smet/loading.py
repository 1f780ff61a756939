"""What a state dict has to say of a sparse layer before its entries are written: how they lie, and whether they fit.

Values are active weights in the order of the mask's tiles, and so are moments and ages, so the layer turns to the
orientation that was saved. A layer is written as a whole or not at all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smet.dtensors import is_cut, of_all, of_first
from smet.errors import ConfigError
from smet.mask import MaskPart, count_active, has_spare_bits
from smet.patterns import OLD_TRANSPOSED, matching
from smet.say import note, say

if TYPE_CHECKING:
    from smet.linear import SparseLinear

ORIENTATION = "transposed"
"""What a state dict calls the orientation of a layer's canonical matrix, beside its values and mask."""
BLOCK = "block"
"""The same of the rows and columns of its tiles."""
PERMUTATION = "permutation"
"""The same of the digest of its features' permutations, 16 bytes; layers without have no such entry."""
SIDES = ("inputs", "outputs")
"""The same of the features in the order in which they are stored, int32, for readers of files that draw none."""
SHAPE = "weight"
"""The same of (out, in). It stands where programs that know no sparse layers look for the matrix, and so stop at a
shape that does not fit; without it, some would go on with a random one."""
MASK_PART = "mask_part"
"""What this rank keeps of the mask, where values are partitioned too (ZeRO-3): it stands in the place of the mask."""
MASK_PLACE = "mask_place"
"""Its first byte, the rank, and of how many: int64 ``(3,)``."""
VERSION = 2
"""Of a ``SparseLinear`` in a state dict; the first had neither of the two."""

_said: set[str] = set()


def add_mask(layer: SparseLinear, destination: dict[str, Any], prefix: str) -> None:
    """Put the mask of a layer whose ranks share it out beside its values: all of it, or this rank's part.

    Collective over those ranks, unless the values are partitioned too.
    """
    if layer.source is None:
        return
    if layer.values.numel() == layer.active * layer.grid.tile_size:
        destination[prefix + "mask"] = layer.source.bits(layer).clone()
        return
    part = layer.source.part(layer)
    destination[prefix + MASK_PART] = part.own
    destination[prefix + MASK_PLACE] = torch.tensor([part.first, part.rank, part.ranks])


def describe(layer: SparseLinear, destination: dict[str, Any], prefix: str) -> None:
    """Put beside the layer's entries how they lie."""
    destination[prefix + ORIENTATION] = torch.tensor(layer.transposed)
    destination[prefix + BLOCK] = torch.tensor(layer.grid.tile)
    if digest := layer.orders.digest():
        destination[prefix + PERMUTATION] = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    for side, order in zip(SIDES, layer.orders, strict=True):
        if order is not None:
            destination[prefix + side] = order.features.to(torch.int32)
    destination[prefix + SHAPE] = torch.tensor((layer.out_features, layer.in_features))


def take_in(
    layer: SparseLinear, state: dict[str, Any], prefix: str, metadata: dict[str, Any], errors: list[str]
) -> bool:
    """Turn the layer to how its entries of ``state`` lie. Returns whether they may be written.

    Args:
        state: loses what says how entries lie.
        metadata: what the saving module's class said of itself; empty where ``state`` was made otherwise.
        errors: takes what is wrong.

    Raises:
        ConfigError: the tiles do not divide the other orientation, or of the ranks over which values are cut only some
            have a state; raised on all of them.
    """
    if is_cut(layer.values) and not _complete(layer, state, prefix):
        raise ConfigError(
            f"some ranks have a state of {prefix.removesuffix('.') or 'the layer'}, and others none; load one on every"
            " rank, or the whole one of rank 0 by set_model_state_dict with broadcast_from_rank0"
        )
    transposed, tile = state.pop(prefix + ORIENTATION, None), state.pop(prefix + BLOCK, None)
    permuted, part = state.pop(prefix + PERMUTATION, None), _part(state, prefix)
    shape = state.pop(prefix + SHAPE) if says_shape(state.get(prefix + SHAPE)) else None
    for side in SIDES:
        state.pop(prefix + side, None)
    values, bits = state.get(prefix + "values"), state.get(prefix + "mask")
    name, own = prefix.removesuffix(".") or "the layer", layer.grid.tile
    if not isinstance(values, Tensor):
        dense = state.get(prefix + "weight")
        if isinstance(dense, Tensor) and tuple(dense.shape) == (layer.out_features, layer.in_features):
            errors.append(f"the state has a dense weight of {name}, which is sparse here; load it before sparsify")
        return True
    found = _maskless(layer, name, bits, part, transposed)
    if tile is not None and tuple(tile.tolist()) != own:
        there = " x ".join(str(side) for side in tile.tolist())
        found.append(f"{name} was saved with tiles of {there}, expected {own[0]} x {own[1]}; set block to what it was")
    if shape is not None and tuple(shape.tolist()) != (layer.out_features, layer.in_features):
        there = " x ".join(str(side) for side in shape.tolist())
        found.append(f"{name} was saved as a weight of {there}, expected {layer.out_features} x {layer.in_features}")
    if bits is not None or transposed is not None:  # values alone belong to the layer as it is
        found += _other_permutation(layer, name, permuted)
    if values.numel() != layer.values.numel():
        found.append(f"{name} has {values.numel()} values in the state, expected {layer.values.numel()}: the density"
                     " or the layer's shape is another")  # fmt: skip
    elif isinstance(bits, Tensor) and not layer.is_full:
        found += _misfit(layer, name, bits)
    if transposed is None:
        turned, wrong = _old(layer, prefix.removesuffix("."), bits is not None, metadata.get("version"))
        found += wrong
    else:
        turned = bool(transposed)
    if not found:
        layer.turn(turned)
        found += _write(layer, name, state, prefix, part)
    errors += found
    return not found


def _complete(layer: SparseLinear, state: dict[str, Any], prefix: str) -> bool:
    """Give a rank what the first one's state says: of a whole state of one rank, torch sends others only parameters and
    buffers (``broadcast_from_rank0``). Collective over the ranks over which values are cut.

    Returns:
        Whether all of these have values to load, or none.
    """
    there = of_all(layer.values, isinstance(state.get(prefix + "values"), Tensor))
    if not all(there):
        return not any(there)
    names = (ORIENTATION, BLOCK, PERMUTATION, SHAPE, "mask")
    own = {name: state[prefix + name] for name in names if isinstance(state.get(prefix + name), Tensor)}
    for name, value in of_first(layer.values, own).items():
        state[prefix + name] = value
    return True


def says_shape(tensor: Any) -> bool:
    """Whether this is the entry ``SHAPE``, and no weight."""
    return isinstance(tensor, Tensor) and tensor.dtype == torch.int64 and tuple(tensor.shape) == (2,)


def _part(state: dict[str, Any], prefix: str) -> MaskPart | None:
    own, place = state.pop(prefix + MASK_PART, None), state.pop(prefix + MASK_PLACE, None)
    if not isinstance(own, Tensor) or not isinstance(place, Tensor) or place.numel() != 3:
        return None
    first, rank, ranks = (int(number) for number in place)
    return MaskPart(first, rank, ranks, own)


def _maskless(layer: SparseLinear, name: str, bits: Any, part: MaskPart | None, transposed: Any) -> list[str]:
    """Values without what says which weights they are. Alone, by hand, they belong to the mask that the layer has."""
    if is_cut(layer.values) and (transposed is None or (bits is None and not layer.is_full)):
        return [
            f"the state has the values of {name}, and does not say how they lie; save the model's state_dict() again"
            " on all ranks, and load states of release 0.1 in one process first"
        ]
    if layer.is_full or bits is not None or part is not None:
        return []
    if transposed is not None or layer.source is not None:
        return [f"the state has the values of {name} and no mask, which tells what weights they are; save the model's"
                " state_dict() again, on all ranks, or DeepSpeed's checkpoint, both of which have it now"]  # fmt: skip
    if "values" not in _said:
        _said.add("values")
        note(f"the state has the values of {name}, and maybe of others, and no mask; they are taken for those of the"
             " mask that is here")  # fmt: skip
    return []


def _write(layer: SparseLinear, name: str, state: dict[str, Any], prefix: str, part: MaskPart | None) -> list[str]:
    """Give a mask that torch would find no buffer for to whoever keeps it."""
    if layer.is_full:
        return []
    if part is not None and layer.source is None:
        layer.part, state[prefix + "mask"] = part, layer.mask
    elif part is not None:
        try:
            layer.source.load_part(layer, part)
        except ConfigError as error:
            return [f"{name}: {text}" for text in error.problems]
    elif layer.source is not None:
        layer.source.load(layer, state.pop(prefix + "mask").to(layer.values.device))
    else:
        layer.part = None
    return []


def _other_permutation(layer: SparseLinear, name: str, saved: Any) -> list[str]:
    own, there = layer.orders.digest(), "" if saved is None or saved.is_meta else bytes(saved.tolist()).hex()
    if there == own or (saved is not None and saved.is_meta):
        return []
    how = f"with its features permuted (digest {there})" if there else "without a permutation of its features"
    here = f"digest {own}" if own else "none"
    return [
        f"{name} was saved {how}, expected {here}; set permute, seed and topology_ranges to what they were, and let the"
        " layer have its name"
    ]


def _misfit(layer: SparseLinear, name: str, bits: Tensor) -> list[str]:
    expected = layer.grid.mask_bytes
    if bits.numel() != expected or bits.dtype != torch.uint8:
        return [f"{name} has a mask of {bits.numel()} x {bits.dtype} in the state, expected {expected} bytes"]
    if not bits.is_meta and (count_active(bits) != layer.active or has_spare_bits(bits, layer.grid.tiles)):
        return [f"{name} has a mask of {count_active(bits)} active tiles in the state, expected {layer.active}"]
    return []


def _old(layer: SparseLinear, name: str, masked: bool, version: int | None) -> tuple[bool, list[str]]:
    """Orientation of entries that do not say it, and why it cannot be told.

    Release 0.1 did not write it down and went by the layer's name. Values without their mask belong to the mask that
    the layer has.
    """
    old = matching(name, OLD_TRANSPOSED) is not None
    if old == layer.transposed or (not masked and not layer.is_full):
        return layer.transposed, []
    if version is None and layer.is_full:
        return layer.transposed, [
            f"the state does not say how the values of {name} lie (release 0.1 went by the layer's name); put"
            f" {name}.{ORIENTATION} into it, torch.tensor({old}) if that release wrote it, else"
            f" torch.tensor({layer.transposed})"
        ]
    if version is None and name not in _said:  # made by other means than state_dict(), or its keys were renamed
        _said.add(name)
        say(
            f"smet: note: the state does not say how the weights of {name} lie; it is read as one of release 0.1, which"
            f" went by the layer's name; if it is of a later one, put {name}.{ORIENTATION} into it",
            logging.WARNING,
        )
    return old, []
