"""SparseLinear against a dense layer whose weight is masked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smet import sparsify
from smet.linear import SparseLinear
from smet.mask import unpack
from smet.optim.adamw import SmetAdamW
from smet.seeds import generator
from tests.smet.drawn import random_mask

BLOCKS = [(1, 1), (1, 4), (2, 3), (4, 1), (12, 8)]


def make(
    block: tuple[int, int] = (1, 1), transposed: bool = False, bias: bool = True, density: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> SparseLinear:  # fmt: skip
    """A layer of 24 outputs and 24 inputs; the odd number of blocks fills no whole byte."""
    outputs, inputs = 24, 24
    blocks = outputs * inputs // (block[0] * block[1])
    active = max(1, round(blocks * density))
    torch.manual_seed(7)
    values = torch.randn(active * block[0] * block[1], dtype=dtype)
    bits = random_mask(blocks, active, generator("layer", block))
    return SparseLinear(
        inputs, outputs, bits, values, block, transposed, torch.randn(outputs, dtype=dtype) if bias else None
    )


def masked_weight(layer: SparseLinear) -> Tensor:
    """Dense (out, in), built by loops over the blocks."""
    grid, (r, c) = layer.grid, layer.grid.tile
    matrix = torch.zeros(grid.rows, grid.cols, dtype=layer.values.dtype)
    values = iter(layer.values.detach().view(-1, r, c))
    for index, active in enumerate(unpack(layer.packed_mask(), grid.tiles).tolist()):
        if active:
            row, col = divmod(index, grid.cols // c)
            matrix[row * r : (row + 1) * r, col * c : (col + 1) * c] = next(values)
    return matrix.t() if layer.transposed else matrix


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_forward_and_gradients_equal_a_masked_dense_layer(block: tuple[int, int], transposed: bool) -> None:
    layer = make(block, transposed)
    weight = masked_weight(layer).requires_grad_()
    assert torch.equal(layer.dense_weight(), weight)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    target = torch.randn(2, 5, 24, dtype=torch.float64)

    ((layer(x) - target) ** 2).sum().backward()
    ((F.linear(other, weight, layer.bias.detach()) - target) ** 2).sum().backward()

    torch.testing.assert_close(x.grad, other.grad, rtol=1e-12, atol=1e-12)
    gradient = weight.grad.t() if transposed else weight.grad
    active = layer.grid.to_tiles(gradient)[unpack(layer.packed_mask(), layer.grid.tiles)]
    torch.testing.assert_close(layer.values.grad, active.reshape(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
def test_gradcheck(block: tuple[int, int], transposed: bool, bias: bool) -> None:
    layer = make(block, transposed, bias, density=0.1)
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("residency", ["compressed", "dense"])
def test_second_derivatives_are_those_of_a_masked_dense_layer(residency: str) -> None:
    layer = make((1, 4), bias=False)
    layer.keep_dense = residency == "dense"
    weight = masked_weight(layer).requires_grad_()
    x = torch.randn(3, 24, dtype=torch.float64)

    def penalty(apply: Callable[[Tensor], Tensor], parameter: Tensor) -> Tensor:
        """Gradient with respect to ``parameter`` of the squared gradient with respect to the input."""
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(apply(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.pow(2).sum(), parameter)[0]

    ours, dense = penalty(layer, layer.values), penalty(lambda leaf: F.linear(leaf, weight), weight)
    active = layer.grid.to_tiles(dense)[unpack(layer.packed_mask(), layer.grid.tiles)]
    torch.testing.assert_close(ours, active.reshape(-1), rtol=1e-10, atol=1e-10)


def test_a_full_layer_keeps_no_mask_and_is_a_dense_layer() -> None:
    layer = make(density=1.0, bias=False)
    assert layer.is_full and layer.mask is None
    assert layer.density == 1.0
    x = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)
    dense = nn.Linear(24, 24, bias=False, dtype=torch.float64)
    dense.load_state_dict({"weight": layer.values.detach().view(24, 24)})
    assert torch.equal(layer(x), dense(x))
    layer(x).pow(2).sum().backward()
    dense(x).pow(2).sum().backward()
    assert torch.equal(layer.values.grad, dense.weight.grad.view(-1))


@pytest.mark.parametrize("shape", [(24,), (0, 24), (1, 2, 3, 24)])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    layer = make((1, 4))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    assert layer.values.grad.shape == layer.values.shape


def test_only_the_input_or_only_the_values_may_need_gradients() -> None:
    layer = make(bias=False)
    layer(torch.randn(3, 24, dtype=torch.float64)).sum().backward()
    assert layer.values.grad is not None
    layer.values.requires_grad_(False)
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, masked_weight(layer).sum(0).expand(3, 24))


@pytest.mark.parametrize("transposed", [False, True])
def test_autocast_computes_in_bf16_and_gives_gradients_in_the_parameters_dtype(transposed: bool) -> None:
    layer = make((1, 4), transposed, dtype=torch.float32)
    dense = nn.Linear(24, 24)
    dense.load_state_dict({"weight": masked_weight(layer), "bias": layer.bias.detach()})
    x = torch.randn(6, 24, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), dense(other)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=1.6e-2, atol=2e-2)
    y.float().pow(2).sum().backward()
    expected.float().pow(2).sum().backward()
    assert layer.values.grad.dtype == torch.float32 and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, other.grad, rtol=2e-2, atol=0.3)


def test_the_graph_between_forward_and_backward_holds_no_dense_matrix() -> None:
    layer = make(density=0.25)
    held: list[tuple[int, ...]] = []

    def record(tensor: Tensor) -> Tensor:
        held.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(torch.randn(3, 24, dtype=torch.float64, requires_grad=True))
    assert sorted(held) == [(3, 24), (layer.values.numel(),)]
    assert layer._dense is None


def test_whoever_wants_the_dense_gradient_gets_it() -> None:
    layer = make((2, 3), transposed=True, bias=False)
    handed: list[Tensor] = []
    layer.gradient_sink = lambda which, dense: handed.append(dense)
    x = torch.randn(3, 24, dtype=torch.float64)
    layer(x).sum().backward()
    torch.testing.assert_close(handed, [x.t() @ torch.ones(3, 24, dtype=torch.float64)])


def test_a_mask_that_does_not_match_the_values_is_refused() -> None:
    bits = random_mask(576, 10, generator(0))
    with pytest.raises(ValueError, match="mask has 10 active tiles, values fill 11"):
        SparseLinear(24, 24, bits, torch.zeros(11))


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_copies_and_state_dicts_are_whole_and_independent(density: float) -> None:
    layer = make((2, 3), transposed=True, density=density)
    twin, blank = copy.deepcopy(layer), make((2, 3), transposed=True, density=density)
    with torch.no_grad():
        blank.values.zero_()
        blank.bias.zero_()
    blank.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(3, 24, dtype=torch.float64)
    assert torch.equal(twin(x), layer(x)) and torch.equal(blank(x), layer(x))
    with torch.no_grad():
        twin.values.add_(1)
        if twin.mask is not None:
            twin.mask.zero_()
    assert torch.equal(blank(x), layer(x))


@pytest.mark.parametrize("kind", [torch.optim.SGD, SmetAdamW])
def test_a_kept_dense_weight_follows_every_change_of_the_values(kind: type[torch.optim.Optimizer]) -> None:
    """Also without a controller that says so: an optimizer's step, a loaded state, another dtype."""
    layer = make(dtype=torch.float32)
    layer.keep_dense = True
    optimizer = kind(layer.parameters(), lr=0.1)  # type: ignore[call-arg]
    x = torch.randn(4, 24)
    for _ in range(2):
        torch.testing.assert_close(layer(x), F.linear(x, masked_weight(layer), layer.bias))
        layer(x).pow(2).sum().backward()
        optimizer.step()
    other = make(dtype=torch.float32)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), other(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), other(x))
    first = layer.dense_weight()
    assert layer.dense_weight() is first, "kept between uses while nothing changes"


def test_versions_tell_what_is_stale() -> None:
    layer = make()
    layer.keep_dense = True
    values, topology, first = layer.values_version, layer.topology_version, layer.dense_weight()
    layer.values.data.view(-1).numpy()[0] += 1  # as an engine writes: torch does not see it
    assert layer.values_version == values and layer.dense_weight() is first
    layer.values_changed()
    assert layer.values_version != values and layer.topology_version == topology
    torch.testing.assert_close(layer.dense_weight(), masked_weight(layer))
    second, values = layer.dense_weight(), layer.values_version
    layer.mask_changed()
    assert layer.topology_version != topology and layer.values_version == values
    assert layer.dense_weight() is not second


def test_moving_a_kept_dense_weight() -> None:
    layer = make()
    layer.keep_dense = True
    x = torch.randn(4, 24)
    layer(x.double())
    assert layer.float()(x).dtype == torch.float32


def test_printing_a_layer_shows_shape_and_density() -> None:
    text = repr(make((2, 3)))
    assert "in_features=24, out_features=24" in text
    assert "block=2x3" in text


@pytest.mark.parametrize("block", [(1, 1), (8, 16)])
def test_compiling_a_model_says_nothing_and_changes_nothing(block: tuple[int, int]) -> None:
    """Whoever multiplies, its kernels are no graph: torch is not to trace into them and to warn of what it finds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16))
    sparsify(model, density=0.3, block=block, balance="never", quiet=True)
    x = torch.randn(16, 32)
    expected = model(x)
    expected.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = torch.compile(model, backend="eager")(x)
        found.sum().backward()
    assert [str(one.message) for one in told if "ynamo" in str(one.message)] == []
    assert torch.equal(found, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
