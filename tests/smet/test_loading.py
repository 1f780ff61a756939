"""Entries of a state dict that do not say how they lie, or do not fit: read as meant, or refused; never garbage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smet
from smet import loading
from smet.convert import Piece
from smet.linear import SparseLinear


def build(seed: int = 0, **changes: Any) -> nn.ModuleDict:
    torch.manual_seed(seed)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("q_proj", "o_proj")})
    piece = Piece(transposed=changes.pop("transposed", ()))
    config = smet.SmetConfig(**{"density": 0.25, "update_interval": 0, **changes})
    smet.sparsify(model, config, piece=piece, quiet=True)
    return model


def outputs(model: nn.ModuleDict) -> Tensor:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    return torch.cat([layer(x) for layer in model.values()], -1).detach()


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("transposed", [(), ("o_proj",), ("q_proj",)])
def test_values_by_name_go_back_into_the_model_they_are_of(transposed: tuple[str, ...]) -> None:
    model = build(transposed=transposed)
    before, best = outputs(model), parameters(model)
    floats = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    for state in (best, floats):
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        model.load_state_dict(state, strict=False)
        assert torch.equal(outputs(model), before)


def test_a_state_made_by_hand_is_taken_for_an_old_one_aloud(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its mask and no word on orientation it may be either; who stripped a prefix of an old one comes here."""
    monkeypatch.setattr(loading, "_said", set())
    model = build()
    state = {**parameters(model), **{name: value.clone() for name, value in model.named_buffers()}}
    model.load_state_dict(state)
    assert model["o_proj"].transposed
    assert "the state does not say how the weights of o_proj lie; it is read as one of release 0.1" in caplog.text


def test_full_layers_without_a_word_are_refused_where_it_matters() -> None:
    model = build(density=1.0)
    before, state = outputs(model), parameters(model)
    with pytest.raises(RuntimeError, match="does not say how the values of o_proj lie.*put o_proj.transposed into it"):
        model.load_state_dict(state, strict=False)
    model.load_state_dict({**state, "o_proj.transposed": torch.tensor(False)}, strict=False)
    assert torch.equal(outputs(model), before)
    with pytest.raises(RuntimeError, match="o_proj.transposed"):
        build(density=1.0, transposed=("q_proj",)).load_state_dict(state, strict=False)


@pytest.mark.parametrize("blocks", [((2, 8), (8, 2)), ((4, 4), (1, 16)), ((8, 16), (16, 8))])
def test_tiles_of_another_shape_and_the_same_area_are_refused(blocks: tuple[tuple[int, int], tuple[int, int]]) -> None:
    saver, reader = (build(seed, block=block) for seed, block in enumerate(blocks))
    before = outputs(reader)
    (r, c), (height, width) = blocks
    with pytest.raises(RuntimeError, match=f"was saved with tiles of {r} x {c}, expected {height} x {width}"):
        reader.load_state_dict(saver.state_dict())
    assert torch.equal(outputs(reader), before)


def test_a_layer_is_written_as_a_whole_or_not_at_all() -> None:
    reader = build()
    before = outputs(reader)
    with pytest.raises(RuntimeError, match="2048 values in the state, expected 1024"):
        reader.load_state_dict(build(seed=1, density=0.5, transposed=("q_proj", "o_proj")).state_dict())
    assert torch.equal(outputs(reader), before)
    wrong = build(seed=1).state_dict()
    wrong["q_proj.mask"].fill_(255)
    wrong["o_proj.mask"] = wrong["o_proj.mask"][:-1]
    with pytest.raises(RuntimeError, match="(?s)q_proj has a mask of 4096 active tiles.*o_proj has a mask of 511 x"):
        reader.load_state_dict(wrong)
    assert torch.equal(outputs(reader), before)


def test_a_layer_that_turns_forgets_where_its_tiles_were() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down_proj = nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(torch.relu(self.up(x)))

    def net(transposed: tuple[str, ...]) -> Net:
        config = smet.SmetConfig(density=0.25, block=(16, 16), update_interval=0)
        made: Net = smet.sparsify(Net(), config, piece=Piece(transposed=transposed), quiet=True).model
        return made

    saver, reader, x = net(("down_proj",)), net(()), torch.randn(256, 64)
    reader(x).sum().backward()
    reader.load_state_dict(saver.state_dict())
    assert torch.equal(reader(x), saver(x))


@pytest.mark.parametrize("residency", ["compressed", "dense"])
@pytest.mark.parametrize("tokens", [8, 128])
def test_a_model_made_in_inference_mode_computes(residency: str, tokens: int) -> None:
    with torch.inference_mode():
        model = build(block=(16, 16), weight_residency=residency)
        layer, x = model["q_proj"], torch.randn(tokens, 64)
        assert isinstance(layer, SparseLinear) and layer.mask is not None
        for seed in (1, 2):  # written again, which inference tensors do not count
            model.load_state_dict(build(seed=seed, block=(16, 16)).state_dict())
            expected = x @ layer.dense_weight().t() + layer.bias
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
