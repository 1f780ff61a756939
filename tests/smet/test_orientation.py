"""State dicts say how each layer's matrix lies, and those of a release that did not are read as it meant them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smet import Remedies, SmetAdamW, SmetConfig, SparseLinear, parameter_groups, sparsify
from smet.convert import Piece
from smet.errors import ConfigError
from smet.linear import sparse_layers

STORED = Path(__file__).parent / "data" / "state_without_orientation.pt"
"""Written by version 0.1.0, of ``Net`` after four steps: model, optimizer, data, and the five steps that followed."""
CONFIG: dict[str, Any] = {"density": 0.5, "block": (1, 2), "update_interval": 0, "warmup_steps": 0}


class Net(nn.Module):
    """Layers whose names that release took for split over their inputs, and one whose name it did not."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)
        self.o_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(x + self.down_proj(torch.relu(self.up_proj(x))))


def net(**changes: Any) -> Net:
    torch.manual_seed(1)
    made: Net = sparsify(Net(), SmetConfig(**{**CONFIG, **changes}), quiet=True).model
    return made


def stored() -> dict[str, Any]:
    found: dict[str, Any] = torch.load(STORED, weights_only=True)
    return found


def test_a_stored_state_dict_without_orientation_is_the_same_function() -> None:
    state, model = stored(), net()
    assert not any(layer.transposed for layer in sparse_layers(model).values())
    model.load_state_dict(state["model"])
    assert {name for name, layer in sparse_layers(model).items() if layer.transposed} == {"down_proj", "o_proj"}
    for name, layer in sparse_layers(model).items():
        assert torch.equal(layer.dense_weight(), state["dense"][name]), name


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_run_goes_on_from_it_bit_for_bit(wrapped: bool) -> None:
    """Moments are active weights in order too: the layer turns, so that they stay those of their weights."""
    state, model = stored(), net()
    holder = nn.ModuleDict({"module": model}) if wrapped else model
    prefix = "module." if wrapped else ""
    holder.load_state_dict({prefix + key: tensor for key, tensor in state["model"].items()})
    groups = parameter_groups(model, SmetConfig(**CONFIG))
    optimizer = SmetAdamW(groups, lr=1e-2, remedies=Remedies("local", 0, "regrown"))
    optimizer.load_state_dict(state["optimizer"])
    losses = []
    for x in state["data"][4:]:
        loss = (model(x) - x.roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(state["losses"], rel=1e-6)
    for key, tensor in state["after"].items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_saved_says_how_it_lies_and_turns_the_layer_that_reads_it(transposed: bool) -> None:
    names = ("up_proj", "down_proj") if transposed else ()
    config = SmetConfig(**CONFIG)
    saver = sparsify(Net(), config, piece=Piece(transposed=names), quiet=True).model
    state = copy.deepcopy(saver.state_dict())
    assert {key for key, value in state.items() if key.endswith(".transposed") and value} == {
        f"{name}.transposed" for name in names
    }
    reader = sparsify(Net(), config, piece=Piece(transposed=("o_proj",)), quiet=True).model
    reader.load_state_dict(state)
    x = torch.randn(3, 8)
    assert torch.equal(reader(x), saver(x))
    for name, layer in sparse_layers(reader).items():
        assert layer.transposed == (name in names)
        assert torch.equal(layer.dense_weight(), saver.get_submodule(name).dense_weight())
    assert reader.state_dict().keys() == state.keys()


def test_a_full_layer_has_an_orientation_too() -> None:
    """It stores no mask, and yet its values lie in one of two orders."""
    saver = sparsify(Net(), SmetConfig(density=1.0), piece=Piece(transposed=("up_proj",)), quiet=True).model
    reader = sparsify(Net(), SmetConfig(density=1.0), quiet=True).model
    reader.load_state_dict(saver.state_dict())
    assert isinstance(reader.up_proj, SparseLinear) and reader.up_proj.transposed
    assert torch.equal(reader.up_proj.dense_weight(), saver.up_proj.dense_weight())


def test_a_kept_dense_matrix_is_forgotten_when_the_layer_turns() -> None:
    saver = sparsify(Net(), SmetConfig(**CONFIG), piece=Piece(transposed=("o_proj",)), quiet=True).model
    reader = net(weight_residency="dense")
    x = torch.randn(3, 8)
    with torch.no_grad():
        reader(x)
        reader.load_state_dict(saver.state_dict())
        assert torch.equal(reader(x), saver(x))


def test_a_block_that_does_not_divide_the_other_orientation_is_refused() -> None:
    model = sparsify(Net(), SmetConfig(density=0.5, block=(4, 3), include=("down_proj",)), quiet=True).model
    state = model.state_dict()
    state["down_proj.transposed"] = torch.tensor(True)
    with pytest.raises(ConfigError, match="block is 4 x 3, which does not divide a 12 x 8"):
        model.load_state_dict(state)


def test_the_setting_that_named_such_layers_is_gone() -> None:
    with pytest.raises(ConfigError, match="there is no setting 'row_parallel'"):
        sparsify(Net(), row_parallel=())
