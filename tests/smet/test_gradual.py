"""Density that falls: what is closed stays exactly 0 and untrained, and what is open is counted by the settings."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import smet
from smet.distribution import active_tiles, density_factor, open_tiles
from smet.mask import unpack
from smet.notices import idle_notices
from smet.optim.ages import CLOSED, AgeTable
from smet.schedule import TopologySchedule
from tests.distributed import run_ranks
from tests.smet.falling import INTERVAL, OPTIMIZERS, STEPS, Trained
from tests.smet.zero_runs import Case, Session


def held_up(progress: float, start: float, end: float) -> float:
    """Falls in the second half."""
    return start + (end - start) * max(0.0, 2 * progress - 1)


def never_there(progress: float, start: float, end: float) -> float:
    return start + 0.5 * (end - start) * progress


def apart(progress: float, start: float, end: float) -> float:
    """Another density on each rank."""
    late = 0.5 < progress < 1 and dist.is_initialized() and dist.get_rank() == 1
    return start + (end - start) * progress + 0.01 * late


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gmp", "initial_density": 1.0},
        {"method": "granet", "block": (2, 4)},
        {"topology_ranges": 4, "growth": "gradient", "protect_rounds": 2},
        {"distribution": "erk", "prune": "saliency", "density_schedule": "linear"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_closed_tiles_are_never_trained_and_their_number_is_the_schedules(
    optimizer: str, settings: dict[str, Any]
) -> None:
    trained = Trained(optimizer, **settings)
    lengths = {name: layer.values.numel() for name, layer in trained.layers().items()}
    losses = []
    for step in range(1, STEPS + 1):
        losses.append(trained.step())
        for name, layer in trained.layers().items():
            closed = trained.closed(layer)
            assert layer.values.numel() == lengths[name]
            entries = {"weight": layer.values.detach(), **trained.optimizer.state[layer.values]}
            for what, entry in entries.items():
                of_closed = entry.view(layer.active, -1)[closed]
                assert bool((of_closed == (CLOSED if what == "birth" else 0)).all()), (what, step)
            ranges = settings.get("topology_ranges", 1)
            stored = [int(part.sum()) for part in unpack(layer.packed_mask(), layer.grid.tiles).chunk(ranges)]
            now = trained.schedule.density(step, layer.configured_density, layer.last_density)
            counts = [open_tiles(count, layer.grid.tiles, layer.configured_density, now) for count in stored]
            assert layer.open_tiles == sum(counts) and (ranges > 1 or counts[0] == active_tiles(layer.grid.tiles, now))
            assert int((layer.weight != 0).sum()) <= layer.open_tiles * layer.grid.tile_size
    assert all(layer.open_tiles < layer.active for layer in trained.layers().values())
    assert losses[-1] < losses[0]
    assert all(report.pruned >= report.grown for report in trained.reports)
    grown = [report.grown for report in trained.reports]
    assert max(grown) == 0 if settings.get("method") == "gmp" else min(grown[:5]) > 0


def test_density_falls_at_updates_from_the_first_to_the_last_value() -> None:
    config = smet.SmetConfig(density=0.1, initial_density=0.9, update_interval=10, density_end_fraction=0.5)
    schedule = TopologySchedule(config, 108)
    densities = [schedule.density(step) for step in range(109)]
    assert densities[:10] == [0.9] * 10 and densities[50:] == [0.1] * 59 and schedule.density_end == 50
    assert densities[20] == pytest.approx(0.1 + 0.8 * (1 - 0.4) ** 3)
    assert densities == sorted(densities, reverse=True) and len(set(densities)) == 6


@pytest.mark.parametrize("stored", [0, 7, 50, 100])
def test_a_range_keeps_its_share_of_what_is_open(stored: int) -> None:
    counts = [open_tiles(stored, 200, 0.5, now) for now in (0.5, 0.4, 0.2, 0.1, 0.001)]
    assert counts[0] == stored and counts == sorted(counts, reverse=True)
    assert counts[2] == pytest.approx(0.4 * stored, abs=0.5) and counts[-1] == min(1, stored)
    assert open_tiles(100, 200, 0.5, 0.333) == active_tiles(200, 0.333)


def test_the_learning_rate_follows_what_is_open() -> None:
    trained = Trained(lr_exponent=0.5)
    assert {group["name"] for group in trained.optimizer.param_groups} >= {"sparse-0.5-to-0.1"}
    seen = []
    for step in range(1, STEPS + 1):
        trained.step()
        (factor,) = {g["lr_factor"] for g in trained.optimizer.param_groups if g["name"] == "sparse-0.5-to-0.1"}
        assert factor == density_factor(trained.schedule.density(step), 0.5)
        seen.append(factor)
    assert seen[0] == 0.5**-0.5 and seen[-1] == pytest.approx(0.1**-0.5)


@pytest.mark.parametrize("settings", [{"method": "gmp", "initial_density": 1.0}, {"growth": "momentum"}])
def test_a_run_that_is_resumed_between_and_at_updates_is_the_same(settings: dict[str, Any]) -> None:
    whole = Trained(**settings)
    for step in range(STEPS):
        whole.step()
        if step in (9, 11):
            saved = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
            resumed = Trained(**settings)
            resumed.model.load_state_dict(saved[0])
            resumed.optimizer.load_state_dict(saved[1])
            for _ in range(step + 1, STEPS):
                resumed.step()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [group["lr_factor"] for group in resumed.optimizer.param_groups] == [
        group["lr_factor"] for group in whole.optimizer.param_groups
    ]
    for layer, other in zip(whole.layers().values(), resumed.layers().values(), strict=True):
        assert torch.equal(whole.closed(layer), resumed.closed(other)) and layer.closed_tiles > 0


def test_states_of_runs_with_and_without_a_falling_density_are_told_apart() -> None:
    falling = Trained(exclude=("4",))
    constant = Trained(exclude=("4",), density=0.5, initial_density=None)
    for _ in range(2 * INTERVAL):
        falling.step(), constant.step()
    constant.optimizer.load_state_dict(falling.optimizer.state_dict())
    constant.model.load_state_dict(falling.model.state_dict())
    with pytest.raises(smet.ConfigError, match="is that of a run whose density falls"):
        constant.step()
    old = Trained()
    old.optimizer.ages.births[CLOSED] = 3
    old.optimizer.topology = copy.copy(old.optimizer.topology)
    with pytest.raises(smet.ConfigError, match="that of a run of constant density"):
        old.step()


def test_the_code_of_closed_weights_is_given_to_nobody() -> None:
    ages = AgeTable(closes=True)
    assert CLOSED not in {ages.open(step)[0] for step in range(1, 600)} and ages.births[CLOSED] is None
    assert ages.clock(CLOSED, 1000) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"initial_density": 0.2, "density": 0.3}, "initial_density is 0.2, expected density 0.3 to 1, or null"),
        ({"initial_density": 1.5}, "initial_density is 1.5, expected density 0.25 to 1"),
        ({"initial_density": "x"}, "initial_density is 'x'"),
        ({"method": "static", "initial_density": 0.5}, "update_interval is 0 with initial_density 0.5, expected more"),
        ({"initial_density": 0.5, "stop_fraction": 0.0}, "stop_fraction is 0 with initial_density 0.5"),
        ({"initial_density": 0.5, "density_end_fraction": 0.9}, "density_end_fraction is 0.9, expected at most stop_"),
        ({"density_end_fraction": 0.0}, "density_end_fraction is 0.0, expected a fraction in"),
        ({"initial_density": 0.5, "density_schedule": "constant"}, "'constant', with which density never falls"),
        ({"density_schedule": "cubik"}, "density_schedule is 'cubik', expected one of .* .did you mean 'cubic'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(smet.ConfigError, match=told) as error:
        smet.SmetConfig(**settings).check()
    assert len(error.value.problems) == 1
    both = smet.SmetConfig(initial_density=0.5, density_schedule="constant", update_interval=0, prune_start=2.0)
    assert len(both.problems()) == 3


def test_a_schedule_of_ones_own_is_asked_by_name_and_must_arrive() -> None:
    trained = Trained(density_schedule=f"{__name__}:held_up")
    for _ in range(STEPS):
        trained.step()
    densities = [report.density["0"] for report in trained.reports]
    assert densities[:2] == [0.5, 0.5] and densities[-1] == pytest.approx(0.1, abs=0.001)
    with pytest.raises(smet.ConfigError, match="never_there' ends at 0.3, expected density 0.1"):
        Trained(density_schedule=f"{__name__}:never_there")


def test_settings_of_a_fall_that_there_is_not_are_idle() -> None:
    (told,) = idle_notices(smet.SmetConfig(density_schedule="linear", density_end_fraction=0.3))
    assert told.startswith("density_schedule, density_end_fraction decide nothing: density does not fall")
    assert idle_notices(smet.SmetConfig(initial_density=0.5, density_schedule="linear")) == []
    assert idle_notices(smet.SmetConfig(method="gmp")) == idle_notices(smet.SmetConfig(method="granet")) == []


def test_tiles_that_close_are_not_balanced() -> None:
    assert not smet.SmetConfig(initial_density=0.5, block=(4, 4)).is_balanced((4, 4))
    (told,) = smet.SmetConfig(initial_density=0.5, block=(4, 4), balance="always").problems()
    assert told.startswith("balance is 'always' with initial_density 0.5, expected auto or never")


def test_a_run_without_updates_says_that_density_stays(caplog: pytest.LogCaptureFixture) -> None:
    Trained(update_interval=1000)
    assert "the topology never changes, and density stays 0.5" in caplog.text


KINDS: dict[str, dict[str, Any]] = {
    "granet": {"block": (4, 4), "settings": (("initial_density", 0.6), ("growth", "gradient"), ("prune_start", 0.3))},
    "gmp": {"settings": (("initial_density", 1.0), ("prune_start", 0.0), ("prune_end", 0.0))},
}


def outcome(case: Case) -> dict[str, Any]:
    session = Session(case).train()
    closed = {}
    for name, layer in session.layers.items():
        whole = session.whole(layer)
        closed[name] = whole["birth"] == -1  # no step is known for what is closed
        assert closed[name].sum() == layer.closed_tiles * layer.grid.tile_size > 0
        assert not any(value[closed[name]].any() for key, value in whole.items() if key != "birth")
    factors = sorted(g["lr_factor"] for g in session.optimizer.param_groups)
    return {**session.summary(), "density": [r["density"] for r in session.reports], "factors": factors}


def everywhere() -> dict[Any, Any]:
    found: dict[Any, Any] = {
        (kind, stage): outcome(Case(stage, **KINDS[kind])) for kind in KINDS for stage in (1, 2, 3)
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    smet.sparsify(model, density=0.1, initial_density=0.5, update_interval=2, quiet=True,
                  density_schedule="tests.smet.test_gradual:apart")  # fmt: skip
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = smet.AdamW(wrapped)
    try:
        smet.attach(optimizer, 20)
        for _ in range(20):
            wrapped(torch.randn(4, 16)).sum().backward()
            optimizer.step()
    except smet.ConfigError as error:
        found["apart"] = str(error)
    return found


@functools.cache
def on_two_ranks() -> list[dict[Any, Any]]:
    return run_ranks(everywhere, 2, timeout=200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_under_zero_density_falls_as_in_plain_torch(kind: str, stage: int) -> None:
    """Norms too: closed tiles have no part in them."""
    plain = outcome(Case(0, **KINDS[kind]))
    first, second = (ranks[kind, stage] for ranks in on_two_ranks())
    assert first["digests"] == second["digests"] and len(first["digests"]) == 3
    assert first["density"] == plain["density"] and first["factors"] == plain["factors"]
    assert first["replaced"] == plain["replaced"]
    torch.testing.assert_close(first["losses"], plain["losses"], rtol=2e-5, atol=0)
    torch.testing.assert_close(first["norms"], plain["norms"], rtol=2e-5, atol=0)
    assert plain["losses"][-1] < plain["losses"][0]


def test_a_density_that_differs_between_ranks_stops_all_of_them() -> None:
    first, second = (ranks["apart"] for ranks in on_two_ranks())
    assert first == second and "density_schedule 'tests.smet.test_gradual:apart' gives" in first
