"""The operators of torch that stand for products, moves and steps: what they compute, keep, and refuse."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import smet
from smet import ConfigError, SmetAdamW, SmetConfig, SparseLinear, kernels, operators, parameter_groups, sparsify
from smet.convert import Piece
from smet.kernels import operators as kernel_operators
from smet.mask import TileGrid, pack
from smet.tickets import holder_of
from tests.smet.looking import Looking

KINDS: dict[str, dict[str, Any]] = {
    "single weights": {"density": 0.3},
    "tiles": {"density": 0.3, "block": (8, 16), "balance": "never"},
    "permuted": {"density": 0.4, "block": (4, 2), "permute": "both"},
    "full": {"density": 1.0},
    "kept": {"density": 0.3, "weight_residency": "dense"},
}


def build(transposed: tuple[str, ...] = ("2",), dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16, bias=False)).to(dtype)
    sparsify(model, SmetConfig(**settings), piece=Piece(transposed=transposed), quiet=True)
    return model


def gradients(model: nn.Module, x: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
    """Result and gradients."""
    own = x.clone().requires_grad_()
    y = model(own) if run is None else run(model, own)
    found = torch.autograd.grad(y.square().sum(), [own, *model.parameters()])
    return [y.detach(), *found]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert [number for number, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)] == []


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_operators_compute_what_layers_compute_to_the_bit(kind: str, autocast: bool) -> None:
    model, x = build(**KINDS[kind]), torch.randn(2, 48, 32)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        expected = gradients(model, x)
        with Looking() as looking:
            found = gradients(model, x)
    same(found, expected)
    assert {name: looking.seen[name] for name in ("product", "input_gradient", "values_gradient")} == dict.fromkeys(
        ("product", "input_gradient", "values_gradient"), 2
    )
    assert looking.seen["reorder"] == (8 if kind == "permuted" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_counter_of_flops_counts_active_weights(kind: str) -> None:
    model, x = build(**KINDS[kind]), torch.randn(3, 5, 32)
    with FlopCounterMode(display=False) as counter:
        model(x.requires_grad_()).sum().backward()
    active = sum(layer.values.numel() for layer in smet.sparse_layers(model).values())
    assert counter.get_total_flops() == 3 * 2 * 15 * active  # forward, gradient of inputs, gradient of values


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_read_is_an_operator_too(kind: str) -> None:
    model, x = build(**KINDS[kind]), torch.randn(5, 32)

    def run(model: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(x @ model[0].weight.t()) @ model[2].weight.t()  # type: ignore[index]

    parameters = [model[0].values, model[2].values]
    expected = torch.autograd.grad(run(model, x).square().sum(), parameters)
    with Looking() as looking:
        found = torch.autograd.grad(run(model, x).square().sum(), parameters)
    same(list(found), list(expected))
    assert (looking.seen["weight"], looking.seen["weight_gradient"]) == (2, 2)


def test_every_operator_passes_torchs_own_checks() -> None:
    model = build(**KINDS["permuted"])
    layer, x = model[0], torch.randn(3, 32, requires_grad=True)
    values, grad = layer.values.detach().clone().requires_grad_(), torch.randn(3, 64)
    grid, bits = TileGrid(6, 4, (2, 1)), pack(torch.arange(12) % 3 == 0)
    state = [torch.rand(5) for _ in range(4)]
    birth, table = torch.zeros(5, dtype=torch.uint8), torch.ones(256)
    sizes = (*(grid.rows, grid.cols), *grid.tile)
    checked = {
        "product": (x, values, layer.ticket, 32, 64),
        "input_gradient": (grad, values.detach(), layer.ticket, 32, 64),
        "values_gradient": (x.detach(), grad, layer.ticket, values.numel()),
        "weight": (values, layer.ticket, 64, 32),
        "weight_gradient": (torch.randn(64, 32), layer.ticket, values.numel()),
        "reorder": (x, layer.orders.inputs.ticket, True),
        "expand": (bits, torch.randn(8, requires_grad=True), *sizes),
        "compress": (torch.randn(6, 4, requires_grad=True), bits, *sizes, 4),
        "adamw": (*state, birth, table, table, 0.9, 0.99, 1e-8, 0.1),
    }
    for name, arguments in checked.items():
        torch.library.opcheck(getattr(torch.ops.smet, name).default, arguments)
    assert operators and kernel_operators


def test_expand_and_compress_are_each_others_gradient() -> None:
    grid, bits = TileGrid(6, 4, (2, 1)), pack(torch.arange(12) % 3 == 0)
    values, matrix = torch.randn(8, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for function, argument in (
        (lambda v: kernels.expand(bits, v, grid), values),
        (lambda m: kernels.compress(m, bits, grid, 4), matrix),
    ):
        with Looking() as looking:
            assert torch.autograd.gradcheck(function, argument.requires_grad_())
            assert torch.autograd.gradgradcheck(function, argument.requires_grad_())
        assert looking.seen.keys() == {"expand", "compress"}


def test_a_step_of_the_optimizer_is_one_operator_for_each_parameter() -> None:
    results = []
    for look in (False, True):
        model, x = build(**KINDS["tiles"]), torch.ones(4, 32)
        optimizer = SmetAdamW(parameter_groups(model, SmetConfig(density=0.3)), lr=1e-2)
        with Looking() if look else nullcontext() as looking:
            for _ in range(3):
                model(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        results.append([parameter.detach() for parameter in model.parameters()])
        assert looking is None or looking.seen["adamw"] == 9
    same(*results)


def test_sinks_get_their_gradients_from_operators() -> None:
    told: dict[bool, list[Tensor]] = {}
    for look in (False, True):
        model, x = build(**KINDS["tiles"]), torch.ones(64, 32)
        for layer in smet.sparse_layers(model).values():
            layer.gradient_sink = lambda _, dense, look=look: told.setdefault(look, []).append(dense.clone())
            layer.values_sink = lambda _, values, look=look: told.setdefault(look, []).append(values.clone())
        with Looking() if look else nullcontext():
            gradients(model, x)
    assert len(told[True]) == 4
    same(told[True], told[False])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_makes_products_again(reentrant: bool) -> None:
    model, x = build(**KINDS["permuted"]), torch.randn(4, 32)
    expected = gradients(model, x)
    own = x.clone().requires_grad_()
    with Looking() as looking:
        y = checkpoint(model, own, use_reentrant=reentrant)
        y.square().sum().backward()
    found: Any = [y.detach(), own.grad, *(parameter.grad for parameter in model.parameters())]
    same(found, expected)
    assert looking.seen["product"] == 4


def test_nothing_is_kept_but_operands_and_tickets() -> None:
    model, x = build(transposed=(), **KINDS["tiles"]), torch.randn(4, 32, requires_grad=True)
    model[2].requires_grad_(False)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with Looking(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    sizes = sorted(tensor.numel() for tensor in kept if tensor.dtype == torch.float32)
    # Of the frozen layer its values, and not its input; in between what tanh keeps.
    assert sizes == sorted([x.numel(), model[0].values.numel(), 4 * 64, model[2].values.numel()])
    assert [tensor.shape for tensor in kept if tensor.dtype != torch.float32] == [(), ()]


def fake(model: nn.Module) -> tuple[FakeTensorMode, nn.Module]:
    mode = FakeTensorMode()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: mode.from_tensor(own) for name, own in tensors.items() if own is not None})  # type: ignore[misc]
    return mode, model


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_of_fake_tensors(kind: str) -> None:
    """Shapes, and no memory: what plans a run by torch's own means."""
    mode, model = fake(build(**KINDS[kind]))
    with mode:
        optimizer = SmetAdamW(parameter_groups(model, SmetConfig(density=0.3)), lr=1e-2)
        y = model(torch.randn(2, 7, 32))
        y.square().sum().backward()
        optimizer.step()
        weight = model[0].weight
    assert isinstance(y, FakeTensor) and y.shape == (2, 7, 16) and weight.shape == (64, 32)
    for parameter in model.parameters():
        assert isinstance(parameter.grad, FakeTensor) and parameter.grad.shape == parameter.shape
    with mode, pytest.raises(RuntimeError, match=r"expected \(\.\.\., 32\) of torch.float32"):
        model(torch.randn(2, 33) if kind != "permuted" else torch.randn(2, 32, dtype=torch.float64))


def test_steps_of_fake_tensors_leave_nothing_to_real_ones_nor_these_to_them() -> None:
    def step() -> Tensor:
        weight = nn.Parameter(torch.ones(8))
        optimizer = SmetAdamW([weight], lr=0.1, betas=(0.8, 0.98))  # of nobody else here
        weight.grad = torch.ones(8)
        optimizer.step()
        return weight.detach()

    with FakeTensorMode():
        assert isinstance(step(), FakeTensor)
    assert step().tolist() == pytest.approx([0.9] * 8)
    with FakeTensorMode():
        assert isinstance(step(), FakeTensor)


def test_fake_inputs_go_through_a_real_model() -> None:
    model = build(**KINDS["tiles"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = model(torch.randn(2, 7, 32))
    assert isinstance(y, FakeTensor) and y.shape == (2, 7, 16)
    assert type(model(torch.randn(2, 32))) is Tensor


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_the_meta_device_tells_shapes(kind: str) -> None:
    model = build(**KINDS[kind]).to("meta")
    y = model(torch.empty(3, 32, device="meta"))
    y.sum().backward()
    assert y.is_meta and y.shape == (3, 16)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())  # type: ignore[union-attr]
    assert model[0].weight.shape == (64, 32) and model[2].weight.shape == (16, 64)


class Elsewhere(torch.Tensor):
    """A tensor whose numbers are elsewhere."""

    @staticmethod
    def __new__(cls, like: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


@pytest.mark.parametrize("kind", ["single weights", "permuted"])
def test_tensors_of_other_kinds_are_refused_by_name(kind: str) -> None:
    model, x = build(**KINDS[kind]), torch.randn(4, 32)
    with pytest.raises(ConfigError, match="the input of a sparse layer is a Elsewhere, expected a plain tensor"):
        model[0](Elsewhere(x))
    model[0]._parameters["values"] = Elsewhere(model[0].values.detach())  # type: ignore[assignment]
    for compute in (lambda: model[0](x), lambda: model[0].weight):
        with pytest.raises(ConfigError, match="values is a Elsewhere, expected a plain tensor"):
            compute()


def test_copies_and_pickles_are_layers_of_their_own_to_operators() -> None:
    layer = build(density=0.3)[0]
    assert isinstance(layer, SparseLinear) and "ticket" not in layer.__getstate__()
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)]
    assert all(holder_of(other.ticket) is other for other in [layer, *others])
    ticket = others[0].ticket
    del others
    gc.collect()
    with pytest.raises(ConfigError, match="asks for a sparse layer that is not in this process, or is gone"):
        torch.ops.smet.weight(layer.values.detach(), ticket, 64, 32)


def test_exported_and_traced_programs_go_on_with_the_masks_of_the_model() -> None:
    model, x = build(density=0.3), torch.randn(4, 32)
    programs = [torch.export.export(model, (x,)).module(), make_fx(model)(x)]
    other = build(density=0.3, seed=5)
    assert not torch.equal(other(x), model(x))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x)) and torch.equal(programs[0](x), other(x))
    assert [str(node.target) for node in programs[1].graph.nodes].count("smet.product.default") == 2
