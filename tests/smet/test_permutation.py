"""Permuted features: the same function by other tiles, alike on every shard, said in whatever is saved."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import smet
from smet import ConfigError, ModelAverage, SmetConfig, SparseLinear, densify, permutation, sparse_layers, sparsify
from smet.convert import Piece
from smet.kernels import reorder
from smet.mask import unpack
from smet.permutation import drawn, orders_of

BOTH = {"density": 0.4, "block": (4, 2), "permute": "both"}


class Layers(nn.Module):
    """Attention's four matrices without attention: three that read the same, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(16, 24, bias=False)
        self.o = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) * torch.tanh(self.k(x)) + self.v(x))


def build(dtype: torch.dtype = torch.float32, piece: Piece = Piece(transposed=("o",)), **changes: Any) -> Layers:  # noqa: B008
    torch.manual_seed(0)
    model = Layers().to(dtype)
    sparsify(model, SmetConfig(**{**BOTH, **changes}), piece=piece, quiet=True)
    return model


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_a_permutation_is_of_its_purpose_and_stays_within_ranges() -> None:
    whole = drawn(24, 4, 0, "inputs", "layers.0")
    assert torch.equal(whole.view(4, 6).sort(1).values.view(-1), torch.arange(24)) and not whole.equal(torch.arange(24))
    others = [drawn(24, 4, 1, "inputs", "layers.0"), drawn(24, 1, 0, "inputs", "layers.0"), drawn(24, 4, 0, "in", "x")]
    assert len({tuple(order.tolist()) for order in (whole, *others)}) == 4
    # Runs that began with these go on with these, on any machine and by any version.
    assert drawn(8, 2, 0, "inputs", "model.layers.0.mlp").tolist() == GOLDEN


GOLDEN = [3, 2, 1, 0, 4, 6, 5, 7]


@pytest.mark.parametrize("permute", ["inputs", "both"])
@pytest.mark.parametrize("block", [(4, 2), (1, 8), (8, 1)])
def test_gradients_are_those_of_dense_products(permute: str, block: tuple[int, int]) -> None:
    """A layer's weight is in the order of its features: products with it, and what they give the values."""
    model = build(torch.float64, permute=permute, block=block, balance="never")
    for layer in sparse_layers(model).values():
        x = torch.randn(3, 5, layer.in_features, dtype=torch.float64)
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = layer(ours), F.linear(plain, layer.weight, layer.bias)
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
        (own,) = torch.autograd.grad(y.pow(2).sum(), layer.values, retain_graph=True)
        (read,) = torch.autograd.grad(z.pow(2).sum(), layer.values, retain_graph=True)
        torch.testing.assert_close(own, read, rtol=1e-12, atol=1e-12)
        y.pow(2).sum().backward()
        z.pow(2).sum().backward()
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(densify(layer).weight, layer.weight, rtol=0, atol=0)
        tall, wide = block[layer.transposed] > 1, block[not layer.transposed] > 1
        assert [order is not None for order in layer.orders] == [wide, tall and permute == "both"]
    torch.autograd.gradgradcheck(layer, torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True))


def test_weights_are_the_dense_models_where_they_are_active_and_at_density_1_all_of_them() -> None:
    torch.manual_seed(0)
    dense = Layers()
    for density in (0.4, 1.0):
        model = build(density=density, fan_in_init=False)
        for name, layer in sparse_layers(model).items():
            weight = layer.weight
            assert torch.equal(weight, dense.get_submodule(name).weight * (weight != 0))
            assert int((weight != 0).sum()) == layer.active * 8
            tiles = layer.orders.stored(weight != 0)
            tiles = layer.grid.to_tiles(tiles.t() if layer.transposed else tiles)
            assert torch.equal(tiles.all(1), unpack(layer.packed_mask(), layer.grid.tiles)), "whole tiles, rearranged"
    torch.testing.assert_close(model(inputs()), dense(inputs()))


def test_a_shard_has_its_part_of_the_same_permutations() -> None:
    torch.manual_seed(0)
    dense = Layers()
    dense_weights = {name: layer.weight.detach() for name, layer in dense.named_children()}
    whole = sparse_layers(build(topology_ranges=2, block=(2, 2)))
    parts = []
    for shard in range(2):
        model = nn.Module()
        for name in "qkv":
            model.add_module(name, nn.Linear(16, 12, bias=False))
        model.o = nn.Linear(12, 16, bias=False)
        piece = Piece(shard, 2, dict.fromkeys("qkvo", 0.4), transposed=("o",))
        config = SmetConfig(**{**BOTH, "topology_ranges": 2, "block": (2, 2)})
        own = lambda name, _, shard=shard: dense_weights[name].chunk(2, int(name == "o"))[shard]  # noqa: E731
        parts.append(sparse_layers(sparsify(model, config, dense_source=own, piece=piece, quiet=True).model))
    for name, layer in whole.items():
        assert torch.equal(torch.cat([part[name].values for part in parts]), layer.values)
        assert torch.equal(torch.cat([part[name].weight for part in parts], int(name == "o")), layer.weight)
    with pytest.raises(
        ConfigError, match="topology_ranges is 1 with permute 'both', expected a multiple of the 2 tens"
    ):
        sparsify(nn.Sequential(nn.Linear(16, 16)), SmetConfig(**BOTH), piece=Piece(0, 2, {"0": 0.4}))
    with pytest.raises(ConfigError, match="topology_ranges is 5 with permute 'both', .*: q has 24"):
        build(topology_ranges=5, balance="never")


def test_layers_that_read_one_tensor_share_one_gather_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(x: Tensor, order: Tensor) -> Tensor:
        counts["moved"] += 1
        return reorder.reorder(x, order)

    monkeypatch.setattr(permutation, "reorder", counted)
    model = build(permute="inputs")
    x = inputs().requires_grad_()
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    assert counts["moved"] == 8, "a leaf may be written between two layers, so each gathers anew, there and back"
    counts.clear()
    normed = x * 1
    made = model(normed)
    assert counts["moved"] == 2
    assert torch.equal(torch.autograd.grad(made.sum(), x)[0], expected) and counts["moved"] == 4
    first = model.q(normed)
    with torch.no_grad():
        normed.mul_(2)
    torch.testing.assert_close(model.q(normed) - model.q.bias, 2 * (first - model.q.bias))
    counts.clear()
    handed = [_Handed.apply(normed) for _ in range(3)]  # as ZeRO-3 does it
    kept, memory = [], set()
    for layer, own in zip((model.q, model.k, model.v), handed, strict=True):
        with torch.autograd.graph.saved_tensors_hooks(lambda one: memory.add(one.data_ptr()) or one, lambda one: one):
            kept.append(layer(own))
    assert counts["moved"] == 1 and len(memory) == 1 + 3, "one copy of the input, and the values of each"
    dead = weakref.ref(permutation._last._made())
    del normed, made, first, kept, handed
    gc.collect()
    assert dead() is None, "nothing outlives the pass"


class _Handed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def test_checkpointing_copies_and_pickles_compute_the_same() -> None:
    model, x = build(), inputs().requires_grad_()
    expected = torch.autograd.grad(model(x * 1).sum(), [x, *model.parameters()])
    again = torch.autograd.grad(checkpoint(model, x * 1, use_reentrant=False).sum(), [x, *model.parameters()])
    assert all(map(torch.equal, again, expected))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x)) and twin.q.orders.digest() == model.q.orders.digest()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x * 1).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"growth": "gradient"}, None), ({"mask_init": "magnitude", "prune": "saliency"}, None),
        ({"mask_init": "snip"}, "loss"), ({"mask_init": "synflow", "balance": "never"}, "loss"),
        ({"initial_density": 0.7, "balance": "auto"}, None),
    ],
)  # fmt: skip
def test_training_is_that_of_tiles_that_lie_together_on_permuted_data(settings: dict[str, Any], loss: Any) -> None:
    """First masks by weights or gradients, topology updates and values: all of it sees stored features."""
    where = {**BOTH, "update_interval": 2, "stop_fraction": 1.0, "prune_start": 0.3, **settings}
    order = orders_of("0", (24, 16), False, SmetConfig(**where))
    columns, rows = order.inputs.features, order.outputs.features
    found = []
    for permute in ("both", "none"):
        torch.manual_seed(0)
        linear = nn.Linear(16, 24, bias=False)
        if permute == "none":
            linear.weight.data = order.stored(linear.weight.data)
        model = nn.Sequential(linear)
        x, y = inputs().flatten(0, 1), torch.randn(15, 24, generator=torch.Generator().manual_seed(2))
        x, y = (x, y) if permute == "both" else (x[:, columns], y[:, rows])
        more = {"loss": lambda model, x=x, y=y: F.mse_loss(model(x), y)} if loss else {}
        sparsify(model, SmetConfig(**{**where, "permute": permute}), quiet=True, **more)
        optimizer = smet.AdamW(model, lr=1e-2)
        run = smet.attach(optimizer, 6)
        for _ in range(6):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        assert run.updates_done == 3 if not settings.get("initial_density") else run.updates_done
        found.append((model[0].packed_mask(), model[0].values.detach()))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)


def test_a_state_dict_goes_into_a_model_of_the_same_permutations_alone() -> None:
    model = build()
    state = model.state_dict()
    assert state["q.permutation"].dtype == torch.uint8 and state["q.permutation"].numel() == 16
    assert not [name for name in build(permute="none").state_dict() if name.endswith("permutation")]
    twin = build(fan_in_init=False)
    twin.load_state_dict(state)
    assert torch.equal(twin(inputs()), model(inputs()))
    twin.load_state_dict({name: value.detach() for name, value in model.named_parameters()}, strict=False)
    digest = model.q.orders.digest()
    for other, told in (
        ({"permute": "none"}, rf"q was saved with its features permuted \(digest {digest}\), expected none; set"),
        ({"permute": "inputs"}, rf"permuted \(digest {digest}\), expected digest (?!{digest})"),
        ({"seed": 1}, "permuted"), ({"topology_ranges": 2}, "permuted"),
    ):  # fmt: skip
        into = build(**other)
        before = into(inputs())
        with pytest.raises(RuntimeError, match=told):
            into.load_state_dict(state)
        assert torch.equal(into(inputs()), before), "nothing was written"
    with pytest.raises(RuntimeError, match="q was saved without a permutation of its features, expected digest"):
        build().load_state_dict(build(permute="none").state_dict())


def test_averages_are_of_weights_in_the_same_places() -> None:
    model, average = build(), None
    weights = []
    for seed in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
        weights.append(model.q.weight.detach().clone())
        average = ModelAverage(model) if average is None else average
        if seed:
            average.update(model)
    assert average is not None
    torch.testing.assert_close(average.model(model).q.weight, torch.stack(weights).mean(0))
    with pytest.raises(
        ConfigError, match=r"q is \[24, 16, 4, 2\] with features permuted .*, expected \[24, 16, 4, 2\] w"
    ):
        average.update(build(seed=1))


def test_the_library_takes_the_setting_by_name_and_says_where_it_decides_nothing() -> None:
    report = sparsify(nn.Sequential(nn.Linear(16, 16)), density=0.5, permute="inputs")
    assert report.warnings[0] == "permute decides nothing: tiles of 1 x 1 share no features"
    assert isinstance(report.model[0], SparseLinear) and report.model[0].orders == permutation.NONE
    with pytest.raises(ConfigError, match="permute is 'input', expected one of none, inputs, both"):
        SmetConfig(permute="input").check()
