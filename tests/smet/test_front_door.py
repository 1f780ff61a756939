"""``sparsify``, ``AdamW`` and ``attach``: three lines that train, to the bit, as the five objects wired by hand do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet import (
    PRESETS,
    ConfigError,
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
)
from tests.smet.front_door import (
    KINDS,
    SETTINGS,
    STEPS,
    Door,
    Hand,
    Loop,
    accumulating,
    batch,
    net,
    ordinary,
    require_equal,
    with_closure,
    with_scaler,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [ordinary, with_scaler, accumulating, with_closure])
def test_it_equals_the_five_objects_bit_for_bit(train: Callable[[Loop], list[float]], kind: str) -> None:
    hand, door = Hand(**KINDS[kind]), Door(**KINDS[kind])
    assert train(hand) == train(door)
    require_equal(hand, door)
    dynamic = SmetConfig(**KINDS[kind]).dynamic
    assert (door.topology.updates_done >= 3) == dynamic


def test_updates_are_told_and_the_last_one_is_kept() -> None:
    model, told = net(), []
    smet.sparsify(model, quiet=True, **SETTINGS)
    optimizer = smet.AdamW(model, lr=1e-2)
    run = smet.attach(optimizer, total_steps=STEPS, on_update=told.append)
    for number in range(12):
        model(batch(number)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [report.step for report in told] == [5, 10] and run.last_report is told[-1] and run.updates_done == 2


@pytest.mark.parametrize("method", PRESETS)
def test_settings_reach_layers_groups_remedies_and_schedule(method: str) -> None:
    """Said once: to ``sparsify``. A preset is what it is called, whatever its optimizer's defaults are."""
    model, given = net(), {"method": method, "seed": 3} | ({} if method == "dense" else {"density": 0.2})
    smet.sparsify(model, quiet=True, **given)
    optimizer = smet.AdamW(model, lr=2e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3)
    config = SmetConfig.preset(**given)
    assert optimizer.ages.remedies == Remedies(config.bias_correction, config.warmup_steps, config.warmup_scope)
    (sparse,) = (group for group in optimizer.param_groups if group["name"].startswith("sparse"))
    density = smet.sparse_layers(model)["0"].configured_density
    assert sparse["lr_factor"] == pytest.approx(density**-config.lr_exponent)
    assert (sparse["lr"], sparse["betas"], sparse["eps"], sparse["weight_decay"]) == (2e-3, (0.8, 0.99), 1e-6, 0.3)
    assert sparse["aged"] == config.dynamic
    assert [g["weight_decay"] for g in optimizer.param_groups if g["name"] == "vectors"] == [0.0]
    run = smet.attach(optimizer, total_steps=STEPS)
    assert run.topology.config == config and run.topology.schedule.config == config


def test_a_config_that_names_a_method_is_that_method() -> None:
    rigl = SmetConfig(method="rigl", density=0.1).check()
    assert rigl == SmetConfig.preset("rigl", density=0.1)
    assert (rigl.growth, rigl.bias_correction, rigl.warmup_steps, rigl.lr_exponent) == ("gradient", "global", 0, 0.0)
    assert SmetConfig(method="set", warmup_steps=7).warmup_steps == 7
    assert "method is ['a'] (list)" in SmetConfig(method=["a"]).problems()[0]  # type: ignore[arg-type]


def test_an_optimizer_that_was_told_no_remedies_gets_those_of_the_config_and_one_told_others_is_refused() -> None:
    config = SmetConfig.preset("set", density=0.25)
    model = net()
    smet.sparsify(model, config, quiet=True)
    optimizer = SmetAdamW(parameter_groups(model, config))
    TopologyController(model, config, LocalStore(optimizer), MaskBank(model), 1000)
    assert optimizer.ages.remedies == Remedies("global", 0, "regrown")
    other = SmetAdamW(parameter_groups(model, config), remedies=Remedies("global", 9))
    with pytest.raises(ConfigError, match="warmup_steps is 9 in the optimizer's remedies and 0 in the config; leave"):
        TopologyController(model, config, LocalStore(other), MaskBank(model), 1000)


def sparse(**settings: Any) -> nn.Module:
    model = net()
    smet.sparsify(model, quiet=True, **{**SETTINGS, **settings})
    return model


def attached_twice() -> None:
    optimizer = smet.AdamW(sparse())
    smet.attach(optimizer, 10)
    smet.attach(optimizer, 20)


def stepped_without_attach() -> None:
    model = sparse()
    optimizer = smet.AdamW(model)
    model(batch(0)).sum().backward()
    optimizer.step()


def sparse_twice_otherwise() -> None:
    model = net()
    smet.sparsify(model, quiet=True, exclude=["2"])
    smet.sparsify(model, quiet=True, warmup_steps=7, bias_correction="global")
    smet.AdamW(model)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a setting that does not exist": (lambda: smet.sparsify(net(), densty=0.2), "no setting 'densty' .did you"),
    "told twice": (lambda: smet.sparsify(net(), SmetConfig(), density=0.2), "density and a config are given"),
    "a value out of range": (lambda: smet.sparsify(net(), density=2.0), "^density is 2.0, expected a fraction"),
    "a dict": (lambda: smet.sparsify(net(), {"density": 0.2}), "config is a dict, expected an SmetConfig"),  # type: ignore[arg-type]
    "no sparse model": (lambda: smet.AdamW(net()), "a Sequential, remembers no settings; make it sparse first"),
    "parameters": (lambda: smet.AdamW(net().parameters()), "given a generator, expected the model"),  # type: ignore[arg-type]
    "settings that cannot both hold": (
        sparse_twice_otherwise, "bias_correction 'local' and 'global'.*; .*warmup_steps 100 and 7, expected the same",
    ),
    "attached twice": (attached_twice, "attached already; call detach"),
    "not attached": (stepped_without_attach, "nobody does it; call smet.attach.optimizer, total_steps."),
    "a model": (lambda: smet.attach(sparse(), 10), "expected a smet.AdamW or a DeepSpeed engine; give it the"),
    "the optimizer below": (
        lambda: smet.attach(SmetAdamW(sparse().parameters()), 10), "make the optimizer by smet.AdamW.model.",
    ),
    "torch's": (lambda: smet.attach(torch.optim.AdamW(net().parameters()), 10), "AdamW, expected a smet.AdamW or"),
    "no steps": (lambda: smet.attach(smet.AdamW(sparse()), 0), "total_steps is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_line(case: str) -> None:
    attempt, words = WRONG[case]
    with pytest.raises(ConfigError, match=words) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_settings_are_those_of_the_moment_they_were_told() -> None:
    model, config = net(), SmetConfig(**SETTINGS)
    smet.sparsify(model, config, quiet=True)
    config.warmup_steps = 77
    assert smet.AdamW(model).ages.remedies.warmup_steps == 10


def test_a_second_sparsify_of_other_layers_may_have_another_density() -> None:
    model = net()
    smet.sparsify(model, quiet=True, **{**SETTINGS, "density": 1.0, "exclude": ["2"]})
    smet.sparsify(model, quiet=True, **{**SETTINGS, "density": 0.5})
    optimizer = smet.AdamW(model)
    assert {g["name"]: g["aged"] for g in optimizer.param_groups} == {
        "vectors": False, "sparse-0.5": True, "sparse-1": False,
    }  # fmt: skip
    assert list(smet.attach(optimizer, 100).topology.layers) == ["2"]


def test_a_static_model_needs_no_attach() -> None:
    model = sparse(update_interval=0)
    optimizer = smet.AdamW(model)
    model(batch(0)).square().mean().backward()
    before = smet.sparse_layers(model)["0"].values.detach().clone()
    optimizer.step()
    assert optimizer.steps_done == 1 and not torch.equal(before, smet.sparse_layers(model)["0"].values)


def test_copies_of_model_and_optimizer_drive_nothing_and_can_be_attached() -> None:
    door = Door(**KINDS["growth by gradients"])
    ordinary(door, last=4)
    copies = [copy.deepcopy((door.model, door.optimizer)), pickle.loads(pickle.dumps((door.model, door.optimizer)))]
    digest = door.topology.mask_digest()
    for model, optimizer in copies:
        assert optimizer.model is model
        model(batch(0)).square().mean().backward()
        with pytest.raises(ConfigError, match="call smet.attach"):
            optimizer.step()
        optimizer.zero_grad()
        twin = Door.__new__(Door)
        twin.model, twin.optimizer = model, optimizer
        twin.topology = smet.attach(optimizer, total_steps=STEPS).topology
        ordinary(twin, first=4, last=12)
        assert twin.topology.updates_done == 2
    assert door.topology.mask_digest() == digest and door.optimizer.steps_done == 4
    ordinary(door, first=4, last=12)
    require_equal(door, twin)


def test_after_detach_training_goes_on_and_the_topology_stands_still() -> None:
    model = sparse(growth="gradient")
    optimizer = smet.AdamW(model, lr=1e-2)
    run = smet.attach(optimizer, total_steps=STEPS)
    hooks = len(optimizer._optimizer_step_post_hooks), len(model._forward_pre_hooks)

    def train(steps: int) -> None:
        for number in range(steps):
            model(batch(number)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    train(9)
    run.detach()
    masks = [layer.packed_mask().clone() for layer in smet.sparse_layers(model).values()]
    train(3)
    assert all(map(torch.equal, masks, [layer.packed_mask() for layer in smet.sparse_layers(model).values()]))
    assert hooks == (1, 1) and not optimizer._optimizer_step_post_hooks and not model._forward_pre_hooks
    train(2)
    again = smet.attach(optimizer, total_steps=2 * STEPS)
    train(1)
    assert (again.updates_done, optimizer.steps_done) == (2, 15)


def test_a_compiled_model_is_looked_into() -> None:
    model = sparse()
    optimizer = smet.AdamW(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert optimizer.model is model
    assert list(smet.attach(optimizer, STEPS).topology.layers) == ["0", "2"]


@pytest.mark.parametrize("kept", [True, False], ids=["the first is kept", "the first is dropped"])
def test_a_second_optimizer_on_the_same_layers_gets_their_gradients(kept: bool) -> None:
    """Whether or not somebody still holds the first, and whatever has been collected."""
    inputs = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(1))

    def model() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        return smet.sparsify(net, density=0.5, update_interval=2, warmup_steps=1, method="smet-rigl", quiet=True).model

    def trained(net: nn.Module, batches: torch.Tensor) -> Any:
        optimizer = smet.AdamW(net, lr=1e-2)
        run = smet.attach(optimizer, 100)
        for x in batches:
            nn.functional.mse_loss(net(x), x).backward()
            optimizer.step()
            optimizer.zero_grad()
        return run

    net, fresh = model(), model()
    first = trained(net, inputs)
    fresh.load_state_dict(net.state_dict())
    first = first if kept else None
    seconds = [trained(one, inputs) for one in (net, fresh)]
    assert [run.updates_done for run in seconds] == [2, 2]
    own, other = net.state_dict(), fresh.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
