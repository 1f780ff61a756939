"""16-bit parameters: fp32 masters and moments that neither stagnate nor lose small updates; state that survives."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from smet import (
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparse_layers,
    sparsify,
)


def test_second_moments_of_a_bf16_parameter_follow_the_gradient_down() -> None:
    """v starts at 0.5 and the gradients then ask for 0.05; in bf16 it would stay where it is."""
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SmetAdamW([weight], lr=0.0)
    weight.grad = torch.full((4,), 500**0.5, dtype=torch.bfloat16)
    optimizer.step()
    state = optimizer.state[weight]
    assert state["exp_avg_sq"].dtype == torch.float32
    assert state["exp_avg_sq"][0].item() == pytest.approx(0.5, rel=0.01)
    stuck = state["exp_avg_sq"].bfloat16()
    assert torch.equal(stuck * 0.999, stuck), "the case must be one in which bf16 stagnates"
    weight.grad = torch.full((4,), 0.05**0.5, dtype=torch.bfloat16)
    for _ in range(6000):
        optimizer.step()
    assert state["exp_avg_sq"][0].item() == pytest.approx(0.05, rel=0.05)


def test_a_bf16_weight_of_002_takes_an_update_of_5e_5() -> None:
    start = torch.tensor(0.02, dtype=torch.bfloat16)
    assert start - torch.tensor(5e-5, dtype=torch.bfloat16) == start, "lost in bf16"
    weight = nn.Parameter(start.repeat(3))
    optimizer = SmetAdamW([weight], lr=5e-5)
    for step in range(1, 11):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        master = optimizer.state[weight]["master"]
        torch.testing.assert_close(master, start.float().repeat(3) - step * 5e-5, rtol=1e-4, atol=0)
        assert torch.equal(weight, master.bfloat16())
    assert weight[0] < start


class Run:
    """A small sparse model trained in plain torch with topology updates."""

    def __init__(self, dtype: torch.dtype, seed: int = 0, **settings: object):
        self.config = SmetConfig(
            density=0.3, update_interval=3, warmup_steps=4, stop_fraction=1.0, seed=seed, **settings
        )  # type: ignore[arg-type]
        torch.manual_seed(seed)
        layers = [nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 8)]
        self.model = sparsify(nn.Sequential(*layers).to(dtype), self.config).model
        remedies = Remedies("local", self.config.warmup_steps)
        self.optimizer = SmetAdamW(parameter_groups(self.model, self.config, 0.1), lr=1e-2, remedies=remedies)
        bank = MaskBank(self.model)
        self.controller = TopologyController(self.model, self.config, LocalStore(self.optimizer), bank, 30)

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            rng = torch.Generator().manual_seed(step)
            x = torch.randn(16, 12, generator=rng).to(next(self.model.parameters()).dtype)
            self.controller.before_step()
            self.optimizer.zero_grad()
            loss = (self.model(x) - x[:, :8]).float().pow(2).mean()
            loss.backward()
            self.optimizer.step()
            self.controller.after_step()
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load(self, state: dict[str, dict]) -> None:
        self.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])


def tensors(run: Run) -> list[Tensor]:
    state = [value for entry in run.optimizer.state.values() for value in entry.values()]
    masks = [layer.packed_mask() for layer in sparse_layers(run.model).values()]
    return [*run.model.parameters(), *state, *masks]


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_saved_run_continues_bit_for_bit_with_every_dtype_kept(dtype: torch.dtype, growth: str) -> None:
    run = Run(dtype, growth=growth)
    run.train(0, 10)
    file = io.BytesIO()
    torch.save(run.state(), file)
    file.seek(0)
    straight_on = run.train(10, 20)

    resumed = Run(dtype, growth=growth)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    resumed.load(torch.load(file, weights_only=True))
    values = sparse_layers(resumed.model)["0"].values
    state = resumed.optimizer.state[values]
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    assert {key: value.dtype for key, value in state.items()} == {
        "exp_avg": precise,
        "exp_avg_sq": precise,
        "birth": torch.uint8,
        **({"master": torch.float32} if dtype == torch.bfloat16 else {}),
    }
    assert state["birth"].max() > 0, "something was regrown before the save"
    assert resumed.train(10, 20) == straight_on
    for ours, theirs in zip(tensors(resumed), tensors(run), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert resumed.controller.mask_digest() == run.controller.mask_digest()
    assert resumed.controller.updates_done == run.controller.updates_done == 6


def test_a_loaded_state_shares_nothing_with_the_one_it_came_from() -> None:
    run, other = Run(torch.float32), Run(torch.float32)
    run.train(0, 4)
    state = run.optimizer.state_dict()
    other.model.load_state_dict(run.model.state_dict())
    other.optimizer.load_state_dict(state)
    before = [tensor.clone() for tensor in tensors(run)]
    other.train(4, 8)
    for tensor, kept in zip(tensors(run), before, strict=True):
        assert torch.equal(tensor, kept)


def test_bf16_parameters_are_their_masters_rounded_after_every_update() -> None:
    run = Run(torch.bfloat16)
    losses = run.train(0, 80)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for layer in sparse_layers(run.model).values():
        assert torch.equal(layer.values, run.optimizer.state[layer.values]["master"].bfloat16())
