"""The learning rate against values worked out by hand. Peak 1.0, 10 warm-up steps of 110, floor 0.1."""

from __future__ import annotations

import pytest

from pretrain.config import OptimizerConfig
from pretrain.schedule import learning_rate


def rate(step: int, schedule: str, total: int = 110, **changes: float) -> float:
    settings = {"lr": 1.0, "warmup_steps": 10, "min_lr_ratio": 0.1, **changes}
    return learning_rate(step, OptimizerConfig(schedule=schedule, **settings), total)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    assert [rate(step, schedule) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 35, 0.1 + 0.9 * 0.8535533905932737),  # a quarter: (1 + cos 45 degrees) / 2
        ("cosine", 60, 0.55),  # half way: midway between 1 and 0.1
        ("cosine", 110, 0.1),
        ("linear", 35, 0.775),
        ("linear", 60, 0.55),
        ("linear", 109, 0.109),
        ("wsd", 87, 1.0),  # the last 20 % of 110 steps are steps 88 to 109
        ("wsd", 88, 1.0),
        ("wsd", 99, 0.55),
        ("wsd", 110, 0.1),
        ("constant", 109, 1.0),
    ],
)
def test_decay(schedule: str, step: int, expected: float) -> None:
    assert rate(step, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_beyond_the_end_the_rate_stays_at_its_floor(schedule: str) -> None:
    assert rate(500, schedule) == pytest.approx(0.1)


def test_the_peak_scales_everything() -> None:
    assert rate(60, "cosine", lr=3e-3) == pytest.approx(3e-3 * 0.55)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rate(0, "cosine", warmup_steps=0) == 1.0


def test_edges_of_wsd_and_of_a_run_that_is_all_warm_up() -> None:
    assert rate(109, "wsd", decay_fraction=0.0) == 1.0
    assert rate(60, "wsd", decay_fraction=1.0) == pytest.approx(0.55)  # the tail cannot start before the warm-up ends
    assert rate(9, "linear", total=10) == 1.0
    assert rate(10, "linear", total=10) == pytest.approx(0.1)
