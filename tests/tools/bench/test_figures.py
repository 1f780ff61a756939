"""Figures against their thresholds, and the statistics behind them."""

from __future__ import annotations

import pytest

from tools.bench import steps
from tools.bench.figures import SPECS, Figure, missed, unmeasured
from tools.bench.spread import median, quartiles, ratios


@pytest.mark.parametrize(
    "name, value, met",
    [
        ("step_time", 0.92, True),
        ("step_time", 0.9201, False),
        ("gpu_adam", 0.7, True),
        ("gpu_adam", 0.69, False),
        ("step_time", None, None),
        ("quickstart_throughput", 0.1, None),
    ],
)
def test_a_figure_meets_its_threshold_up_to_the_threshold_itself(name: str, value: float | None, met: bool | None):
    assert Figure(name=name, value=value).met is met


def test_the_json_of_a_figure_says_everything_and_only_misses_are_missed():
    figures = [
        Figure(name="step_time", value=1.0, spread=(0.9, 1.1), note="busy machine"),
        Figure(name="bytes_sent", value=0.3),
        *unmeasured(["gpu_adam"], "no GPU"),
    ]
    first = figures[0].to_json()
    assert first["threshold"] == 0.92 and first["met"] is False and first["spread"] == [0.9, 1.1]
    assert {"name", "value", "threshold", "met", "spread", "unit", "note"} <= set(first)
    assert figures[2].to_json()["value"] is None and figures[2].to_json()["note"] == "no GPU"
    assert missed(figures) == ["step_time"]


def test_thresholds_are_those_of_the_contract():
    assert {name: spec.threshold for name, spec in SPECS.items() if spec.threshold is not None} == {
        "step_time": 0.92,
        "step_time_dense_residency": 0.88,
        "bytes_sent": 0.34,
        "bytes_sent_replicated": 0.28,
        "bytes_at_rest": 0.28,
        "optimizer_step": 0.35,
        "expand_compress": 0.05,
        "topology_update": 1.0,
        "checkpoint_step": 1.25,
        "gpu_expand": 0.7,
        "gpu_compress": 0.7,
        "gpu_adam": 0.7,
    }


def test_sessions_are_pooled_round_by_round():
    one, two = ({"wall": {"SMET": [number]}, "cpu": {"SMET": [number / 2]}} for number in (1.0, 2.0))
    assert steps.pooled([one, two]) == {"wall": {"SMET": [1.0, 2.0]}, "cpu": {"SMET": [0.5, 1.0]}}


def test_a_disturbance_of_both_sides_of_a_round_leaves_the_ratio_alone():
    figure = median("step_time", ratios([0.9, 9.0, 0.9], [1.0, 10.0, 1.0]))
    assert figure.value == pytest.approx(0.9) and figure.spread == pytest.approx((0.9, 0.9))
    assert quartiles([5.0]) == (5.0, 5.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
