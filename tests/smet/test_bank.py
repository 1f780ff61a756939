"""Masks cut over ranks: whatever is asked for is whole, at rest each rank holds 1/D, on real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet import MaskBank, SmetConfig, SparseLinear, sparse_layers, sparsify
from smet.bank import bucket_key, window
from smet.mask import pack, unpack
from smet.seeds import generator
from tests.distributed import run_ranks
from tests.smet.drawn import random_mask

SIZES = ((9, 5), (7, 11), (3, 3))
"""Layers of one decoder layer: 45, 77 and 9 blocks, 6 + 10 + 2 mask bytes."""


def build() -> nn.Module:
    """Three decoder layers, a layer outside of them, and a full one that has no mask."""
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleList(nn.Linear(i, o, bias=False) for o, i in SIZES) for _ in range(3))
    model.out = nn.Linear(1, 2, bias=False)
    sparsify(model, SmetConfig(density=0.4, include=("layers*", "out")))
    full = nn.Sequential(nn.Linear(4, 4))
    sparsify(full, SmetConfig(density=1.0))
    model.full = full[0]
    return model


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.layers.0.self_attn.q_proj", "model.layers.0"),
        ("model.layers.10.mlp.up_proj", "model.layers.10"),
        ("layers.3", "layers.3"),
        ("7", "7"),
        ("h.1.experts.2.up", "h.1"),
        ("lm_head", "lm_head"),
        ("block2.fc", "block2.fc"),
    ],
)
def test_a_bucket_is_a_decoder_layer(name: str, key: str) -> None:
    assert bucket_key(name) == key


def test_without_a_group_layers_keep_their_own_masks() -> None:
    model = build()
    layer = model.layers[1][0]
    bank = MaskBank(model)
    assert bank.bits(layer) is layer.mask
    fresh = pack(~unpack(layer.mask, 45))
    bank.write(layer, fresh)
    assert torch.equal(layer.packed_mask(), fresh)
    start, own = bank.fragment(layer)
    assert start == 0 and own is layer.mask
    assert bank.bytes_gathered == 0


class Calls:
    """Counts the collectives that are started while it is open."""

    def __enter__(self) -> Calls:
        from smet import bank

        self.count, self.module, self.original = 0, bank, bank.all_gather_flat
        bank.all_gather_flat = self._counted
        return self

    def _counted(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self.original(*args, **options)

    def __exit__(self, *exception: object) -> None:
        self.module.all_gather_flat = self.original


def whole_from_fragments(bank: MaskBank, layer: SparseLinear) -> Tensor:
    """The mask of ``layer`` as its owners' live fragments say, put together by way of pickles."""
    pieces: list[Any] = [None] * dist.get_world_size()
    start, own = bank.fragment(layer)
    dist.all_gather_object(pieces, (start, own.tolist()))
    found = torch.full((layer.grid.mask_bytes,), -1)
    for start, values in pieces:
        assert (found[start : start + len(values)] == -1).all(), "a byte with two owners"
        found[start : start + len(values)] = torch.tensor(values, dtype=found.dtype)
    assert (found >= 0).all(), "a byte without an owner"
    return found.to(torch.uint8)


def bank_on_ranks() -> dict[str, Any]:
    group, ranks = dist.group.WORLD, dist.get_world_size()
    model, twin = build(), build()
    layers, twins = sparse_layers(model), sparse_layers(twin)
    original = {name: layer.packed_mask().clone() for name, layer in layers.items()}
    bank, replicated = MaskBank(model, group), MaskBank(twin, group, replicated=True)
    masked = [name for name in layers if name != "full"]
    report: dict[str, Any] = {"rest": sum(t.numel() for t in bank.tensors())}
    assert all(layer.mask is None for layer in layers.values())
    state = model.state_dict()
    assert all(torch.equal(state[f"{name}.mask"], original[name]) for name in masked), "state dicts are whole"
    bank.release()
    bank.bytes_gathered = 0

    with Calls() as calls:
        for name in [*masked, *reversed(masked)]:  # forward, then backward
            assert torch.equal(layers[name].packed_mask(), original[name]), name
            assert torch.equal(twins[name].packed_mask(), original[name]), name
    report["gathers"], report["bytes"] = calls.count, bank.bytes_gathered
    with Calls() as calls:
        for name in [*masked, *reversed(masked)]:  # the next micro-batch
            assert torch.equal(layers[name].packed_mask(), original[name]), name
    report["gathers of the next"] = calls.count
    bank.release()
    assert sum(t.numel() for t in bank.tensors()) == report["rest"]

    torch.manual_seed(0)  # any other order, the same on all ranks: evaluation, recomputation, updates
    for index in torch.randint(0, len(masked), (40,)).tolist():
        name = masked[index]
        assert torch.equal(bank.bits(layers[name]), original[name])
        if index % 5 == 0:  # written while its bucket is gathered, and while it is not
            original[name] = random_mask(layers[name].grid.tiles, layers[name].active, generator(index))
            bank.write(layers[name], original[name])
            replicated.write(twins[name], original[name])
            assert torch.equal(bank.bits(layers[name]), original[name])
        if index % 7 == 0:
            bank.release()
    for name in masked:
        assert torch.equal(whole_from_fragments(bank, layers[name]), original[name])
        assert torch.equal(whole_from_fragments(replicated, twins[name]), original[name])
        assert torch.equal(bank.bits(layers[name]), original[name])

    x = torch.randn(2, 5)
    for a, b in zip(model.layers, twin.layers, strict=True):
        assert torch.equal(a[0](x), b[0](x))
    assert torch.equal(model.full(torch.ones(1, 4)), twin.full(torch.ones(1, 4)))

    bank.release()
    before = {name: bank.fragment(layers[name])[1].tolist() for name in masked}
    bank.to("cpu")
    assert {name: bank.fragment(layers[name])[1].tolist() for name in masked} == before
    report["total"] = sum(original[name].numel() for name in masked)
    report["ranks"] = ranks
    return report


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_two_buckets_are_held_and_the_next_one_is_always_among_them(count: int) -> None:
    up = list(range(count))
    order = [*up, *reversed(up), *up, *reversed(up)]  # two micro-batches, forward and backward
    held, before = window(order[0], None, count), order[0]
    for index in order[1:]:
        assert index in held, "asked for before its gather had begun"
        if index != before:
            held, before = window(index, before, count), index
        assert index in held and len(set(held)) == min(2, count) and set(held) <= set(up)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_masks_on_real_ranks(ranks: int) -> None:
    if ranks == 1:
        results = run_ranks(bank_alone, 1)
        assert results == [True]
        return
    results = run_ranks(bank_on_ranks, ranks)
    buckets = [18, 18, 18, 1]
    share = sum(-(-size // ranks) for size in buckets)
    for result in results:
        assert result["total"] == sum(buckets)
        assert result["rest"] == share, "1/D of every bucket, rounded up to a byte"
        # Forward gathers each bucket once, backward each but the last two again, and the first two stay.
        assert result["gathers"] == 2 * len(buckets) - 2
        assert result["gathers of the next"] == 2 * (len(buckets) - 2)
        received = sum(-(-size // ranks) for size in buckets + buckets[:-2]) * (ranks - 1)
        assert result["bytes"] == received


def bank_alone() -> bool:
    model = build()
    bank = MaskBank(model, dist.group.WORLD)
    layer = model.layers[0][0]
    return bank.bits(layer) is layer.mask and not bank.sharded
