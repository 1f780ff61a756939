"""Settings of the wrong kind, out of range, or so extreme that a run would be wrecked without a word."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import smet
from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparsify,
)
from smet.config import PRESETS
from smet.distribution import MAX_FACTOR, active_tiles, density_factor, effective_density
from smet.notices import idle_notices

HINTS = typing.get_type_hints(SmetConfig)
NUMBERS = [name for name, kind in HINTS.items() if kind in (int, float)]
PLAIN = [part.name for part in dataclasses.fields(SmetConfig) if part.name not in (*NUMBERS, "initial_density")]
WRONG = [math.nan, math.inf, -math.inf, "0.25", True, None, [1], 10**40, 1j]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_number_of_the_wrong_kind_is_one_line(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*, expected a (whole|finite) number$"):
        SmetConfig(**{name: value}).check()


@pytest.mark.parametrize("name", PLAIN)
def test_so_is_any_other_value_of_the_wrong_kind(name: str) -> None:
    for value in (7, 0.5, ["a", 3], {"a": 1}):
        (problem,) = SmetConfig(**{name: value}).problems()
        assert problem.startswith(f"{name} is ") and ", expected " in problem and "\n" not in problem


def test_every_problem_comes_at_once_and_what_is_sound_is_checked_too() -> None:
    config = SmetConfig(density="0.25", lr_exponent=math.nan, prune_start=1.0, block=(0, 1), growth="gradeint")
    assert [text.split(" ")[0] for text in config.problems()] == [
        "density", "lr_exponent", "growth", "block", "prune_start",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr_exponent", -0.5, r"expected 0 \(off\) to 2"),
        ("lr_exponent", 50, r"expected 0 \(off\) to 2"),
        ("prune_start", 1.0, "1 replaces every active weight"),
        ("prune_end", -0.1, r"expected a fraction in \[0, 1\)"),
        ("stop_fraction", 1.5, r"expected a fraction in \[0, 1\]"),
        ("topology_ranges", 0, "expected 1 or more"),
        ("warmup_steps", -1, "expected 0 or more"),
        ("block", (1, 2, 3), "expected a list of 2 values"),
        ("include", "*mlp*", "expected a list of values, each text"),
    ],
)
def test_values_that_would_wreck_a_run_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*{expected}"):
        SmetConfig(**{name: value}).check()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bias_correction": "loca"}, "bias_correction is 'loca', expected one of local, global.*did you mean 'local'"),
        ({"warmup_scope": "everything"}, "warmup_scope is 'everything'"),
        ({"warmup_steps": -3}, "warmup_steps is -3, expected 0 or more"),
        ({"warmup_steps": math.nan}, r"warmup_steps is nan \(float\), expected a whole number"),
    ],
)
def test_remedies_that_do_not_exist_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Remedies(**given)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(1e-300, 1.0), st.floats(0, 2))
def test_the_density_that_is_active_decides_and_no_factor_exceeds_the_bound(
    blocks: int, density: float, exponent: float
) -> None:
    effective = effective_density(blocks, density)
    actual = active_tiles(blocks, density) / blocks
    assert effective == pytest.approx(actual, rel=0.0101)
    assert 1 / blocks <= actual <= 1
    assert 1.0 <= density_factor(effective, exponent) <= MAX_FACTOR


def test_a_density_of_almost_nothing_scales_nothing_beyond_the_bound_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    config = SmetConfig(density=1e-9)
    report = sparsify(model, config)
    assert [layer.active for layer in report.layers.values()] == [1, 1]
    (sparse,) = [group for group in parameter_groups(model, config) if group["name"].startswith("sparse")]
    assert sparse["lr_factor"] == MAX_FACTOR
    assert max(layer.values.abs().max() for layer in report.layers.values()) <= MAX_FACTOR / 8
    few, rate, initial = report.warnings
    assert few.startswith("2 layers have too few tiles for the density: 0 has 4,096, of which 1 active is 0.000244")
    assert few.endswith(" instead of 1e-09")
    assert rate.startswith("lr_exponent would scale learning rates by up to 64 at these densities; 32 is the most")
    assert initial.startswith("fan_in_init would scale initial weights by up to 64")


def test_a_block_as_large_as_its_layer_makes_nothing_sparse_and_says_so() -> None:
    report = sparsify(nn.Sequential(nn.Linear(8, 8)), SmetConfig(density=0.25, block=(8, 8)))
    assert report.warnings == [
        "1 layer has too few tiles for the density: 0 has 1, of which 1 active is 1 instead of 0.25"
    ]


def test_rounding_alone_makes_no_group_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 63), nn.Linear(63, 61))
    config = SmetConfig(density=0.25)
    assert not sparsify(model, config).warnings
    assert [group["name"] for group in parameter_groups(model, config)] == ["vectors", "sparse-0.25"]


@pytest.mark.parametrize(
    ("given", "steps", "expected"),
    [
        ({"update_interval": 100}, 99, "the topology never changes: the first update is due after step 100"),
        ({"update_interval": 80}, 100, r"none happens after step 75 \(stop_fraction 0.75 of 100 steps\)"),
        ({"stop_fraction": 0.0, "update_interval": 5}, 100, "the topology never changes"),
        ({"prune_start": 0.0, "prune_end": 0.0, "update_interval": 5}, 100, "prune_start and prune_end are 0"),
        ({"prune_start": 0.9, "update_interval": 5}, 100, "replaces up to 90% of a layer's active weights by zeros"),
        ({"prune_end": 0.4, "update_interval": 5}, 100, "the prune fraction rises, from 0.2 to 0.4"),
        ({"warmup_steps": 101, "update_interval": 5}, 100, "no regrown weight reaches its full rate"),
    ],
)
def test_a_schedule_that_cannot_do_what_it_says_is_said_once(
    given: dict[str, Any], steps: int, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    controller({**given}, steps)
    (record,) = [r for r in caplog.records if r.name == "smet" and "note" in r.getMessage()]
    assert record.getMessage().startswith("smet: note: ")
    assert re.search(expected, record.getMessage())
    caplog.clear()
    controller({"update_interval": 5, "warmup_steps": 10}, steps)
    controller({"method": "static", "update_interval": 0}, steps)
    assert not [r for r in caplog.records if "note" in r.getMessage()]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "100", math.nan])
def test_a_run_of_no_length_is_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match="total_steps is .*expected the run's number of optimizer steps"):
        controller({}, steps)


def controller(given: dict[str, Any], steps: Any) -> TopologyController:
    config = SmetConfig(**given).check()
    model = sparsify(nn.Sequential(nn.Linear(8, 8)), config, quiet=True).model
    optimizer = SmetAdamW(parameter_groups(model, config))
    return TopologyController(model, config, LocalStore(optimizer), MaskBank(model), steps)


OTHERS: dict[str, Any] = {
    "balance": "always", "permute": "both",
    "distribution": "erk", "prune": "saliency", "prune_schedule": "linear", "prune_start": 0.5, "prune_end": 0.3,
    "mask_init": "magnitude", "topology_ranges": 2, "protect_rounds": 1, "warmup_steps": 3,
    "warmup_scope": "all", "lr_exponent": 0.25, "seed": 7, "update_interval": 3, "stop_fraction": 0.5,
}  # fmt: skip
FLIPPED: dict[str, dict[Any, Any]] = {
    "bias_correction": {"local": "global", "global": "local"}, "fan_in_init": {True: False, False: True},
    "growth": {"random": "gradient", "gradient": "random"},
}  # fmt: skip
ELSEWHERE = {
    "method", "density", "block", "include", "exclude", "mask_residency", "weight_residency", "compute",
    "initial_density", "density_schedule", "density_end_fraction",
}  # fmt: skip
"""Settings of which layers are sparse, and how densely, and of where things lie."""


def trained(config: SmetConfig) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    optimizer = smet.AdamW(smet.sparsify(model, config, quiet=True).model, lr=1e-2)
    smet.attach(optimizer, 8)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    return torch.cat([layer.dense_weight().flatten() for layer in smet.sparse_layers(model).values()])


@pytest.mark.parametrize("method", [name for name in PRESETS if not SmetConfig(method=name).falls])
def test_a_setting_is_said_to_decide_nothing_where_training_is_the_same_without_it(method: str) -> None:
    plain = SmetConfig(method=method, **({} if PRESETS[method].get("update_interval") == 0 else {"update_interval": 2}))
    assert idle_notices(plain) == []
    assert {*OTHERS, *FLIPPED} | ELSEWHERE == {part.name for part in dataclasses.fields(SmetConfig)}
    without = trained(plain)
    for name in (*OTHERS, *FLIPPED):
        value = OTHERS[name] if name in OTHERS else FLIPPED[name][getattr(plain, name)]
        config = dataclasses.replace(plain, **{name: value})
        told = [line for line in idle_notices(config) if line.startswith(f"{name} decides nothing: ")]
        assert bool(told) == torch.equal(trained(config), without), (name, told)


def test_all_that_decides_nothing_is_one_line_for_each_reason() -> None:
    config = SmetConfig(method="static", growth="gradient", prune="saliency", warmup_scope="all", lr_exponent=0.5)
    assert idle_notices(config) == [
        "prune, growth decide nothing: update_interval is 0, as method 'static' has it, the masks stay as they are",
        "warmup_scope decides nothing: warmup_steps is 0, nothing is warmed up",
    ]
    for stops in ({"update_interval": 0}, {"stop_fraction": 0.0}):
        (line,) = idle_notices(SmetConfig(growth="gradient", **stops))
        assert line == f"growth decides nothing: {next(iter(stops))} is 0, the masks stay as they are"
    (line,) = smet.sparsify(nn.Sequential(nn.Linear(8, 8)), method="dense", mask_init="magnitude").warnings
    assert line == "mask_init decides nothing: density is 1, as method 'dense' has it, every weight is active"
    assert idle_notices(SmetConfig(method="static", update_interval=5)) == [
        "method 'static' is a label only: update_interval is 5, so masks change"
    ]
    assert idle_notices(SmetConfig(method="dense", density=0.5))[0].startswith("method 'dense' is a label only")


def test_nothing_is_computed_for_masks_that_hold_every_weight() -> None:
    """SNIP would need a loss, and a function of one's own would be asked."""
    for name in ("snip", "tests.smet.own_criteria:mask_fails_on_one"):
        model = smet.sparsify(nn.Sequential(nn.Linear(8, 8)), method="dense", mask_init=name, quiet=True).model
        assert model[0].is_full
