"""``SparseLinear.weight``: for code that reads a layer's weight instead of calling it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smet import SmetConfig, SparseLinear, sparsify
from smet.convert import Piece


def layer_of(density: float = 0.5, transposed: bool = False, block: tuple[int, int] = (1, 1)) -> SparseLinear:
    torch.manual_seed(0)
    piece = Piece(transposed=("0",) if transposed else ())
    config = SmetConfig(density=density, block=block)
    layer: SparseLinear = sparsify(nn.Sequential(nn.Linear(12, 8)), config, piece=piece).layers["0"]
    return layer


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize(("transposed", "block"), [(False, (1, 1)), (True, (1, 4)), (True, (4, 2))])
def test_what_is_computed_from_it_trains_the_values(density: float, transposed: bool, block: tuple[int, int]) -> None:
    layer = layer_of(density, transposed, block)
    x = torch.randn(5, 12, requires_grad=True)
    target = torch.randn(5, 8)

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((out * target).sum(), [x, layer.values, layer.bias]))

    read = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(read, layer(x))
    assert layer.weight.shape == (8, 12) and layer.weight.dtype == torch.float32
    for one, other in zip(gradients(read), gradients(layer(x)), strict=True):
        torch.testing.assert_close(one, other)


def test_who_asks_for_the_gradient_of_the_values_gets_it_also_where_the_weight_is_read() -> None:
    layer, given = layer_of(), []
    layer.values_sink = lambda _, gradient: given.append(gradient.clone())
    F.linear(torch.randn(5, 12), layer.weight).sum().backward()
    assert len(given) == 1 and torch.equal(given[0], layer.values.grad) and bool(given[0].any())


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_what_would_be_lost_is_refused(density: float) -> None:
    layer = layer_of(density)
    before = layer.values.detach().clone()
    with pytest.raises(RuntimeError):
        layer.weight.zero_()
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer.weight.copy_(torch.ones(8, 12))
    for new in (nn.Parameter(torch.ones(8, 12)), torch.ones(8, 12), None):
        with pytest.raises((RuntimeError, AttributeError)):
            layer.weight = new
    assert torch.equal(layer.values, before)
    assert "weight" not in dict(layer.named_parameters())
    assert {*layer.state_dict()} <= {"values", "mask", "bias", "transposed", "block", "weight"}
    assert layer.state_dict()["weight"].tolist() == [8, 12], "the shape of the weight alone"


def test_a_frozen_layers_weight_passes_gradients_on() -> None:
    layer = layer_of()
    layer.requires_grad_(False)
    x = torch.randn(3, 12, requires_grad=True)
    F.linear(x, layer.weight).sum().backward()
    torch.testing.assert_close(x.grad, layer.dense_weight().sum(0).expand(3, 12))


def test_values_that_an_engine_holds_elsewhere_are_said_to_be_away() -> None:
    layer = layer_of()
    layer.values.data = torch.empty(0)
    with pytest.raises(RuntimeError, match="its 48 values are partitioned"):
        layer.weight  # noqa: B018


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_layers_work_in_training_evaluation_and_their_fast_path(norm_first: bool) -> None:
    torch.manual_seed(1)
    one = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0, norm_first=norm_first)
    model = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
    report = sparsify(model, SmetConfig(density=0.5))
    assert len(report.layers) == 4
    x = torch.randn(3, 5, 16)
    trained = model.train()(x)
    trained.sum().backward()
    assert all(layer.values.grad is not None for layer in report.layers.values())
    torch.testing.assert_close(model.eval()(x), trained)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), trained)
