"""Uniform and Erdos-Renyi densities: exact totals, the right proportions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smet.distribution import layer_densities

LLAMA = {"q": (256, 256), "kv": (64, 256), "up": (688, 256), "down": (256, 688), "tiny": (8, 256)}


def total_density(shapes: dict[str, tuple[int, int]], densities: dict[str, float]) -> float:
    sizes = {name: rows * cols for name, (rows, cols) in shapes.items()}
    return sum(densities[name] * size for name, size in sizes.items()) / sum(sizes.values())


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=8), st.floats(0.001, 1.0))
def test_erk_keeps_the_total_and_stays_within_one(shapes: list[tuple[int, int]], density: float) -> None:
    named = {str(index): shape for index, shape in enumerate(shapes)}
    densities = layer_densities(named, density, "erk")
    assert densities.keys() == named.keys()
    assert all(0 < d <= 1 for d in densities.values())
    assert total_density(named, densities) == pytest.approx(density, rel=1e-9)


def test_erk_is_proportional_to_the_sum_of_sides_over_their_product() -> None:
    densities = layer_densities(LLAMA, 0.1, "erk")
    free = [name for name in LLAMA if densities[name] < 1]
    ratios = {
        densities[name] / ((LLAMA[name][0] + LLAMA[name][1]) / (LLAMA[name][0] * LLAMA[name][1])) for name in free
    }
    assert len(free) >= 4
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-9)
    assert densities["kv"] > densities["q"] > densities["up"] == pytest.approx(densities["down"])


def test_erk_makes_layers_dense_that_would_exceed_one() -> None:
    densities = layer_densities(LLAMA, 0.6, "erk")
    assert densities["tiny"] == 1.0
    assert densities["up"] < 1.0
    assert total_density(LLAMA, densities) == pytest.approx(0.6, rel=1e-9)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_density_one_is_dense_everywhere(distribution: str) -> None:
    assert set(layer_densities(LLAMA, 1.0, distribution).values()) == {1.0}


def test_uniform_is_uniform() -> None:
    assert set(layer_densities(LLAMA, 0.3, "uniform").values()) == {0.3}
