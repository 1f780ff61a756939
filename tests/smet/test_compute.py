"""Who multiplies: the first backend of the table that serves a layer, and the dense gradient for those who ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smet
from smet import compute
from smet.compute.dense import Dense
from smet.convert import Piece
from smet.errors import ConfigError
from smet.linear import SparseLinear


def sparse_layer(transposed: bool, density: float = 0.4) -> SparseLinear:
    model = nn.Sequential(nn.Linear(24, 16, bias=False))
    config, piece = smet.SmetConfig(density=density, block=(4, 2)), Piece(transposed=("0",) if transposed else ())
    layer = smet.sparsify(model, config, piece=piece).model[0]
    assert isinstance(layer, SparseLinear) and layer.transposed is transposed
    return layer


def products(layer: SparseLinear, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, layer.values.grad = x.clone().requires_grad_(), None
    y = layer(x)
    y.pow(2).sum().backward()
    return y.detach(), x.grad, layer.values.grad


class Counting(Dense):
    """Serves layers of more than ``least`` tokens, and counts what it did."""

    name = "counting"

    def __init__(self, least: int):
        self.least, self.calls = least, []

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        return forced or x.shape[:-1].numel() >= self.least

    def forward(self, *given: Any) -> Tensor:
        self.calls.append("forward")
        return super().forward(*given)

    def input_gradient(self, *given: Any) -> Tensor:
        self.calls.append("input_gradient")
        return super().input_gradient(*given)

    def values_gradient(self, *given: Any) -> Tensor:
        self.calls.append("values_gradient")
        return super().values_gradient(*given)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    backend = Counting(least=10)
    monkeypatch.setattr(compute, "TABLE", {"counting": backend, **compute.TABLE})
    return backend


@pytest.mark.parametrize("transposed", [False, True])
def test_the_dense_backend_is_the_plain_product_to_the_bit(transposed: bool):
    layer, x = sparse_layer(transposed), torch.randn(2, 5, 24)
    y, grad_x, grad_values = products(layer, x)
    weight = layer.dense_weight()
    grad = 2 * y
    assert torch.equal(y, F.linear(x, weight)) and torch.equal(grad_x, grad @ weight)
    flat_x, flat = x.view(-1, 24), grad.view(-1, 16)
    assert torch.equal(
        grad_values, layer.compress_gradient(flat_x.t() @ flat if transposed else (flat.t() @ flat_x).contiguous())
    )
    assert compute.dense_backend().flops(layer, 10) == 6 * 10 * 24 * 16


def test_a_backend_before_the_dense_one_does_all_products_of_the_layers_it_serves(counting: Counting):
    layer = sparse_layer(False)
    products(layer, torch.randn(10, 24))
    assert counting.calls == ["forward", "input_gradient", "values_gradient"]
    products(layer, torch.randn(9, 24))
    assert len(counting.calls) == 3, "nine tokens are the dense backend's"


def test_who_grows_by_gradients_gets_the_dense_one_whoever_multiplies(counting: Counting):
    layer, x, got = sparse_layer(False), torch.randn(10, 24), []
    layer.gradient_sink = lambda _, dense: got.append(dense)
    y, _, grad_values = products(layer, x)
    assert counting.calls == ["forward", "input_gradient"]
    assert torch.equal(got[0], (2 * y).t() @ x) and grad_values.shape == layer.values.shape


def test_the_environment_forces_a_backend_and_unknown_names_are_refused(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
):
    layer, x = sparse_layer(False), torch.randn(3, 24)
    monkeypatch.setenv("SMET_COMPUTE", "counting")
    assert compute.choose(layer, x) is counting
    monkeypatch.setenv("SMET_COMPUTE", "dense")
    assert compute.choose(layer, torch.randn(50, 24)) is compute.dense_backend()
    monkeypatch.setenv("SMET_COMPUTE", "countin")
    with pytest.raises(ConfigError, match="SMET_COMPUTE is 'countin', expected one of auto, counting.*'counting'"):
        layer(x)


def test_a_written_mask_is_announced_to_its_layer():
    layer = sparse_layer(False)
    bank = smet.MaskBank(nn.Sequential(layer))
    before = layer.masks_written
    bank.write(layer, layer.packed_mask().clone())
    assert layer.masks_written == before + 1


@pytest.mark.parametrize("backend", ["auto", "dense", "tiles"])
@pytest.mark.parametrize("tokens", [32, 128])
def test_who_differentiates_the_backward_pass_gets_right_second_derivatives(
    backend: str, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SMET_COMPUTE", backend)
    torch.manual_seed(0)
    sparse = smet.sparsify(nn.Sequential(nn.Linear(64, 64)), density=0.5, block=(16, 16), quiet=True).model[0]
    plain = nn.Linear(64, 64)
    with torch.no_grad():
        plain.weight.copy_(sparse.dense_weight())
        plain.bias.copy_(sparse.bias)
    found = []
    for layer in (sparse, plain):
        x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (gradient,) = torch.autograd.grad((x + layer(x)).pow(2).sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        sparse.values.grad, sparse.compress_gradient(plain.weight.grad.contiguous()), rtol=1e-4, atol=1e-2
    )
