"""What ``AgedOptimizer`` does for any formula: ages, chunks, states of its own, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet.errors import ConfigError
from smet.optim import aged, find
from smet.optim.aged import AgedOptimizer
from smet.optim.formula import Formula
from smet.optim.front import ModelOptimizer
from smet.optim.lion import Lion
from tests.pretrain.own_formulas import Halved, Orthogonal, Sign


def small(**settings: Any) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
    told = {"density": 0.3, "update_interval": 3, "warmup_steps": 5, "stop_fraction": 1.0, **settings}
    return smet.sparsify(model, **told).model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("formula", ["lion", "adamw_8bit", "tests.pretrain.own_formulas:Halved", Sign, Lion()])
def test_the_front_door_takes_any_formula_and_its_state_dicts_resume_to_the_bit(formula: Any) -> None:
    model = small()
    optimizer = ModelOptimizer(model, formula, lr=1e-2, weight_decay=0.1)
    run = smet.attach(optimizer, total_steps=30)
    first = train(model, optimizer, range(10))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    rest = train(model, optimizer, range(10, 30))
    assert run.updates_done == 10 and rest[-1] < first[0]
    again = small()
    resumed = ModelOptimizer(again, formula, lr=1e-2, weight_decay=0.1)
    smet.attach(resumed, total_steps=30)
    again.load_state_dict(kept[0])
    resumed.load_state_dict(kept[1])
    assert train(again, resumed, range(10, 30)) == rest


def test_lion_is_the_papers_and_warms_regrown_weights_up() -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    group = {"params": [weight], "aged": True, "weight_decay": 0.1, "lr_factor": 2.0}
    remedies = smet.Remedies(warmup_steps=4)
    optimizer = AgedOptimizer([group], Lion, lr=1e-2, remedies=remedies, betas=(0.8, 0.95))
    w, m, born = weight.detach().clone(), torch.zeros(7, dtype=torch.float64), torch.zeros(7)
    for step in range(1, 12):
        weight.grad = torch.sin(torch.arange(7.0, dtype=torch.float64) * step)
        optimizer.step()
        warm = torch.where(born == 0, 1.0, ((step - born) / 4).clamp(max=1.0)).double()
        w = w * (1 - 2e-2 * 0.1) - 2e-2 * warm * (0.8 * m + 0.2 * weight.grad).sign()
        m = 0.95 * m + 0.05 * weight.grad
        torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=1e-14)
        if step in (3, 6):  # three weights are regrown
            code, _ = optimizer.ages.open(step)
            at = slice(step - 3, step)
            optimizer.state[weight]["birth"][at], born[at] = code, step
            for vector in (weight.detach(), optimizer.state[weight]["exp_avg"], w, m):
                vector[at] = 0.0


def test_an_update_in_chunks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (1 << 20, 7):
        monkeypatch.setattr(aged, "CHUNK", chunk)
        model = small()
        optimizer = ModelOptimizer(model, Halved, lr=1e-2)
        smet.attach(optimizer, total_steps=12)
        train(model, optimizer, range(12))
        results.append([p.detach() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_matrices_are_whole_where_they_are_required_and_all_else_is_refused() -> None:
    square = nn.Parameter(torch.randn(4, 6))
    optimizer = AgedOptimizer([square], Orthogonal, lr=1.0)
    before, square.grad = square.detach().clone(), torch.randn(4, 6)
    optimizer.step()
    moved = before - square.detach()
    torch.testing.assert_close(moved @ moved.t(), torch.eye(4), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"shape \(6,\), and orthogonal requires matrices, expected two dimensions"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(6))]})
    with pytest.raises(ConfigError, match="group 'vectors' has the shape .*, and orthogonal requires matrices"):
        ModelOptimizer(small(), Orthogonal)
    with pytest.raises(ConfigError, match="orthogonal requires matrices, and ZeRO and fully_shard cut param"):
        AgedOptimizer([square], Orthogonal, external_clock=True)
    with pytest.raises(ConfigError, match="ZeRO and fully_shard cut parameters"):
        optimizer.start()


def test_the_state_of_another_formula_is_refused_and_nothing_is_changed() -> None:
    model = small(update_interval=0)
    theirs, ours = smet.AdamW(model), ModelOptimizer(model, "lion")
    train(model, theirs, range(2))
    with pytest.raises(
        ConfigError, match=r"is that of adamw \(exp_avg, exp_avg_sq per weight\), expected lion \(exp_a"
    ):
        ours.load_state_dict(theirs.state_dict())
    assert not ours.state and ours.steps_done == 0
    train(model, ours, range(2))
    with pytest.raises(ConfigError, match=r"is that of lion \(exp_avg per weight\), expected adamw"):
        theirs.load_state_dict(ours.state_dict())
    old = theirs.state_dict()
    del old["smet"]["formula"]  # as earlier versions saved it
    theirs.load_state_dict(old)


def test_options_that_a_formula_does_not_have_are_refused() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"lion has no option 'beta' \(did you mean 'betas'\?\)"):
        AgedOptimizer([weight], Lion, beta=0.9)
    with pytest.raises(ConfigError, match="betas of group '0' are .*, expected two numbers"):
        AgedOptimizer([{"params": [weight], "betas": (0.9, 1.0)}], Lion)
    with pytest.raises(ConfigError, match="the key 'momentun', which nobody reads .did you mean 'momentum'"):
        AgedOptimizer([{"params": [weight], "momentun": 0.9}], Halved)
    with pytest.raises(ConfigError, match="formula: smet.optim.formula.Formula has no name"):
        AgedOptimizer([weight], Formula)
    with pytest.raises(
        ConfigError, match="formula is 'lio', expected one of adamw, adamw_8bit, lion, or package.module:name"
    ):
        find("formula", "lio")


def test_former_places_and_copies_still_work(tmp_path: Path) -> None:
    from smet.adamw import AdamW
    from smet.ages import AgeTable, Remedies
    from smet.bounds import update_bound
    from smet.optimizer import SmetAdamW, TopologyPosition

    assert (AdamW, SmetAdamW, Remedies) == (smet.AdamW, smet.SmetAdamW, smet.Remedies)
    assert AgeTable().births[0] == 0 and TopologyPosition().updates_done == 0 and update_bound(1, (0.9, 0.999)) > 0
    model = small()
    optimizer = ModelOptimizer(model, Halved, lr=1e-2)
    smet.attach(optimizer, total_steps=9)
    train(model, optimizer, range(4))
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin.formula.name == "halved" and twin.steps_done == 4 and twin.ages.births == optimizer.ages.births
