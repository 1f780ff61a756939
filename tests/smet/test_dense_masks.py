"""First masks that ask the dense model: SNIP and SynFlow against plain references, and losses that tell nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet import ConfigError
from smet.mask import unpack


def chain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 8, bias=False))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(torch.randn(16, 12, generator=torch.Generator().manual_seed(2))).pow(2).mean()


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: unpack(la.packed_mask(), la.grid.tiles) for n, la in smet.sparse_layers(model).items()}


@pytest.mark.parametrize("block", [(1, 1), (4, 2)])
def test_snip_keeps_the_largest_weight_times_gradient(block: tuple[int, int]) -> None:
    dense, model = chain(), chain()
    model[2].requires_grad_(False)
    smet.sparsify(model, mask_init="snip", loss=loss_of, density=0.3, block=block, balance="never", quiet=True)
    loss_of(dense).backward()
    for name, mask in kept(model).items():
        layer, weight = model.get_submodule(name), dense.get_submodule(name).weight
        scores = layer.grid.to_tiles(weight.detach() * weight.grad).abs().sum(1)
        assert scores[mask].min() > scores[~mask].max()
        values = layer.grid.to_tiles(weight.detach())[mask].reshape(-1)
        assert torch.equal(layer.values, values), "weights are kept as they were"
    assert not model[2].values.requires_grad and model[0].values.requires_grad


def test_synflow_is_the_papers_on_a_chain_of_layers() -> None:
    """Scores of two layers in closed form (Tanaka et al., appendix): |w_ij| times what flows in and out."""
    dense, model = chain(), chain()
    ones = torch.ones(1, 12)
    smet.sparsify(model, mask_init="synflow", loss=lambda m: m(ones).sum(), density=0.2, quiet=True)
    first, second = dense[0].weight.detach().abs(), dense[2].weight.detach().abs()
    for number in range(1, 101):
        scores = (first * second.sum(0)[:, None], second * first.sum(1)[None, :])
        masks = []
        for score in scores:
            blocks = score.numel()
            final = round(0.2 * blocks)
            count = final if number == 100 else max(final, math.ceil((final / blocks) ** (number / 100) * blocks))
            threshold = score.view(-1).sort(descending=True).values[count - 1]
            masks.append(score >= threshold)
        first, second = first * masks[0], second * masks[1]
    assert torch.equal(kept(model)["0"], masks[0].view(-1))
    assert torch.equal(kept(model)["2"], masks[1].view(-1))


def test_choosing_by_the_dense_model_leaves_everything_else_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 8))
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    smet.sparsify(model, mask_init="synflow", loss=lambda m: m(torch.ones(4, 12)).sum(), include=("0",), quiet=True)
    assert torch.equal(torch.rand(1), expected)
    for name in ("0.bias", "1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked", "3.weight"):
        assert torch.equal(model.state_dict()[name], before[name]), name
    assert (model[0].training, model[2].training, model[3].training) == (True, True, False)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, "mask_init='snip' asks the dense model; give sparsify loss="),
        (
            lambda model: model[0](torch.ones(2, 12)).sum(),
            "nothing to go by in layer 2: the loss does not depend on it",
        ),
        (lambda model: model(torch.ones(2, 12)).sum() * math.inf, "not finite in layer 0"),
        (lambda model: None, "loss gives NoneType, expected one number"),
        (lambda model: model(torch.ones(2, 12)), r"loss gives a tensor of shape \(2, 8\), expected one number"),
        (lambda model: model(torch.ones(2, 12)).sum().detach(), r"shape \(\) without a graph, expected one number"),
    ],
)
def test_a_loss_that_tells_nothing_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        smet.sparsify(chain(), mask_init="snip", loss=loss, quiet=True)
