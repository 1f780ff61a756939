"""Topology updates happen when they should, replace what they should, and stop."""

from __future__ import annotations

import math

import pytest

from smet.config import SmetConfig
from smet.schedule import TopologySchedule


def schedule(total_steps: int = 1000, **settings: object) -> TopologySchedule:
    return TopologySchedule(SmetConfig(**settings), total_steps)  # type: ignore[arg-type]


def test_updates_come_at_every_interval_until_the_stop() -> None:
    plan = schedule(update_interval=100, stop_fraction=0.75)
    assert [step for step in range(1001) if plan.due(step)] == [100, 200, 300, 400, 500, 600, 700]


def test_the_stop_step_itself_is_included() -> None:
    plan = schedule(update_interval=50, stop_fraction=0.5)
    assert max(step for step in range(2000) if plan.due(step)) == 500


@pytest.mark.parametrize("never", [{"update_interval": 0}, {"density": 1.0}, {"stop_fraction": 0.0}])
def test_static_settings_never_update(never: dict[str, float]) -> None:
    assert not any(schedule(**never).due(step) for step in range(2000))


def test_stopping_at_the_end_updates_in_the_last_interval_too() -> None:
    assert schedule(update_interval=100, stop_fraction=1.0).due(1000)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_prune_fraction_falls_from_start_to_end_and_never_leaves_them(kind: str) -> None:
    plan = schedule(prune_schedule=kind, prune_start=0.3, prune_end=0.01, stop_fraction=0.8)
    fractions = [plan.prune_fraction(step) for step in range(0, 1001)]
    assert fractions[0] == pytest.approx(0.3)
    assert fractions[800] == pytest.approx(0.01)
    assert all(a >= b - 1e-15 for a, b in zip(fractions, fractions[1:], strict=False))
    assert fractions[1000] == pytest.approx(0.01)


def test_the_shapes_between() -> None:
    half = {
        kind: schedule(prune_schedule=kind, prune_start=0.2, prune_end=0.0, stop_fraction=1.0).prune_fraction(250)
        for kind in ("cosine", "linear", "wsd", "constant")
    }
    assert half["cosine"] == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert half["linear"] == pytest.approx(0.15)
    assert half["wsd"] == half["constant"] == pytest.approx(0.2)
    late = schedule(prune_schedule="wsd", prune_start=0.2, prune_end=0.0, stop_fraction=1.0)
    assert late.prune_fraction(800) == pytest.approx(0.2)
    assert late.prune_fraction(900) == pytest.approx(0.1)


def test_constant_stays() -> None:
    plan = schedule(prune_schedule="constant", prune_start=0.1, prune_end=0.9)
    assert {plan.prune_fraction(step) for step in (0, 1, 500, 1000)} == {0.1}
