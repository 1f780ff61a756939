"""Loops as people write them: steps that are skipped, calls too many, too few or out of order. The clock decides."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparse_layers,
    sparsify,
)

INTERVAL = 5


class Loop:
    """A small model whose batch of iteration i depends on i alone."""

    def __init__(self, **settings: Any):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        settings = {"density": 0.25, "update_interval": INTERVAL, "warmup_steps": 3, **settings}
        self.config = SmetConfig(**settings)
        sparsify(self.model, self.config)
        self.optimizer = SmetAdamW(parameter_groups(self.model, self.config), lr=1e-2)
        self.topology = TopologyController(
            self.model, self.config, LocalStore(self.optimizer), MaskBank(self.model), total_steps=100
        )

    def loss(self, iteration: int) -> torch.Tensor:
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(iteration))
        return (self.model(x) - x).square().mean()

    def train(self, first: int, last: int) -> list[int]:
        """Iterations of an ordinary loop; the steps after which there were updates."""
        updates = []
        for iteration in range(first, last):
            self.topology.before_step()
            self.loss(iteration).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if report := self.topology.after_step():
                updates.append(report.step)
        return updates

    def tensors(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.state_dict())
        for index, state in enumerate(self.optimizer.state.values()):
            found |= {f"{index} {key}": value for key, value in state.items()}
        return found


def equal(a: Loop, b: Loop) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_a_step_that_the_scaler_skips_repeats_no_update(growth: str) -> None:
    """Iterations 6 and 12 overflow: as if they had not been, and the update due after step 10 follows once."""
    loop, plain = Loop(growth=growth), Loop(growth=growth)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
    updates = []
    for iteration in range(1, 15):
        loop.topology.before_step()
        scale = float("inf") if iteration in (6, 12) else 1.0
        scaler.scale(loop.loss(iteration) * scale).backward()
        scaler.unscale_(loop.optimizer)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        if report := loop.topology.after_step():
            updates.append((iteration, report.step, report.update))
    assert updates == [(5, 5, 1), (11, 10, 2)]
    for iteration in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14):
        plain.train(iteration, iteration + 1)
    assert equal(loop, plain)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_accumulation_with_both_calls_around_every_micro_batch_equals_one_big_step(
    growth: str, set_to_none: bool
) -> None:
    """As accelerate's ``accumulate`` does it: ``step`` and ``zero_grad`` are left out until the last micro-batch."""
    around, once = Loop(growth=growth), Loop(growth=growth)
    for number in range(12):
        once.topology.before_step()
        for micro in range(3):
            around.topology.before_step()
            (around.loss(3 * number + micro) / 3).backward()
            (once.loss(3 * number + micro) / 3).backward()
            if micro == 2:
                around.optimizer.step()
                around.optimizer.zero_grad(set_to_none=set_to_none)
            around.topology.after_step()
        once.optimizer.step()
        once.optimizer.zero_grad()
        once.topology.after_step()
    assert around.topology.updates_done == once.topology.updates_done == 2
    assert equal(around, once)


def test_calls_without_a_step_change_nothing() -> None:
    loop, plain = Loop(growth="gradient"), Loop(growth="gradient")
    for iteration in range(12):
        loop.topology.before_step()
        loop.topology.before_step()
        loop.train(iteration, iteration + 1)
        assert loop.topology.after_step() is None
        assert loop.topology.after_step() is None
        plain.train(iteration, iteration + 1)
    assert equal(loop, plain)


def test_a_step_skipped_while_gradients_are_collected_leaves_nothing_behind() -> None:
    """The fifth step is tried with another batch first, and dropped without an overflow."""
    loop, plain = Loop(growth="gradient"), Loop(growth="gradient")
    loop.train(0, 4)
    loop.topology.before_step()
    loop.loss(99).backward()
    loop.topology.after_step()
    loop.optimizer.zero_grad()
    assert loop.train(4, 6) == [5]
    plain.train(0, 6)
    assert equal(loop, plain)


def test_an_update_that_the_loop_ran_past_is_an_error() -> None:
    loop = Loop()
    for iteration in range(7):
        loop.loss(iteration).backward()
        loop.optimizer.step()
    with pytest.raises(ConfigError, match="took 7 steps since .* past the topology update due after step 5; call"):
        loop.topology.after_step()


def test_two_controllers_over_one_optimizer_are_an_error() -> None:
    loop = Loop()
    second = TopologyController(loop.model, loop.config, LocalStore(loop.optimizer), MaskBank(loop.model), 100)
    second.before_step()
    with pytest.raises(ConfigError, match="another TopologyController was made over this optimizer"):
        loop.topology.before_step()


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("moment", ["before the controller", "after the controller"])
def test_model_and_optimizer_state_alone_continue_bit_for_bit(growth: str, moment: str) -> None:
    run = Loop(growth=growth, protect_rounds=1)
    assert run.train(0, 12) == [5, 10]
    file = io.BytesIO()
    torch.save([run.model.state_dict(), run.optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    resumed = Loop(growth=growth, protect_rounds=1)
    if moment == "before the controller":
        optimizer = SmetAdamW(parameter_groups(resumed.model, resumed.config), lr=1e-2)
        optimizer.load_state_dict(optimizer_state)
        resumed.optimizer = optimizer
        resumed.topology = TopologyController(
            resumed.model, resumed.config, LocalStore(optimizer), MaskBank(resumed.model), 100
        )
        resumed.model.load_state_dict(model_state)
    else:
        resumed.optimizer.load_state_dict(optimizer_state)
        resumed.model.load_state_dict(model_state)
    assert run.train(12, 24) == resumed.train(12, 24) == [15, 20]
    assert run.topology.updates_done == resumed.topology.updates_done == 4
    assert run.topology.state_dict() == resumed.topology.state_dict()
    assert equal(run, resumed)


def test_a_state_saved_between_step_and_update_still_gets_its_update() -> None:
    run, resumed = Loop(), Loop()
    run.train(0, 4)
    run.loss(4).backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    resumed.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    resumed.optimizer.load_state_dict(run.optimizer.state_dict())
    assert run.topology.after_step() is not None
    assert resumed.topology.after_step() is not None
    assert equal(run, resumed)


@pytest.mark.parametrize("asked", [True, False])
def test_a_state_without_the_update_number_loads_and_goes_on_with_the_number_of_its_step(asked: bool) -> None:
    """States of the first release, whether or not somebody asks for the number before the next update."""
    run, resumed = Loop(), Loop()
    run.train(0, 12)
    state = copy.deepcopy(run.optimizer.state_dict())
    del state["smet"]["topology"]
    resumed.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    resumed.optimizer.load_state_dict(state)
    assert not asked or resumed.topology.updates_done == 2
    assert run.train(12, 24) == resumed.train(12, 24)
    assert equal(run, resumed)


@pytest.mark.parametrize("forgotten", ["model", "optimizer"])
def test_states_of_different_steps_are_refused(forgotten: str) -> None:
    run, resumed = Loop(), Loop()
    resumed.train(0, 1)
    run.train(0, 12)
    if forgotten == "model":
        resumed.optimizer.load_state_dict(run.optimizer.state_dict())
        with pytest.raises(ConfigError, match="masks are not those .* of the same step"):
            resumed.topology.before_step()
    else:
        resumed.model.load_state_dict(run.model.state_dict())
        with pytest.raises(ConfigError, match="masks are not those .* of the same step"):
            resumed.train(1, 12)


def test_weights_alone_start_a_new_run_with_a_new_optimizer() -> None:
    run, tuned = Loop(), Loop()
    run.train(0, 12)
    tuned.model.load_state_dict(run.model.state_dict())
    assert tuned.train(0, 12) == [5, 10]


def test_a_copied_or_pickled_optimizer_keeps_clock_and_ages() -> None:
    run = Loop()
    run.train(0, 12)
    twin = copy.deepcopy(run)
    assert (twin.optimizer.steps_done, twin.topology.updates_done) == (12, 2)
    twin.topology = TopologyController(
        twin.model, twin.config, LocalStore(twin.optimizer), MaskBank(twin.model), total_steps=100
    )
    assert run.train(12, 24) == twin.train(12, 24) == [15, 20]
    assert equal(run, twin)
    assert twin.optimizer.ages.births == run.optimizer.ages.births


def test_frozen_layers_and_later_groups_follow_the_same_clock() -> None:
    loop = Loop()
    extra = nn.Linear(4, 4)
    loop.optimizer.add_param_group({"params": extra.parameters(), "betas": (0.95, 0.9999)})
    assert loop.optimizer.ages.averages == ((0.95, 1.0), (0.9999, 0.5))
    before = extra.weight.clone()
    for iteration in range(6):
        extra(torch.ones(4)).sum().backward()
        loop.train(iteration, iteration + 1)
    assert loop.topology.updates_done == 1 and not torch.equal(extra.weight, before)
    assert all(layer.gradient_sink is None for layer in sparse_layers(loop.model).values())
