"""The bounds of docs/theory.md hold for adversarial gradients, are attained, and the page states their numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smet import SmetAdamW
from smet.optim.ages import Remedies
from smet.optim.bounds import displacement_bound, momentum_ratio_bound, update_bound

NAIVE = Remedies("global", 0, "regrown")
LOCAL = Remedies("local", 0, "regrown")
SMET = Remedies("local", 100, "regrown")
METHODS = {"naive": NAIVE, "local correction": LOCAL, "SMET": SMET}
LR = 0.5
PAGE = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()


def updates(gradients: list[float], born: int, betas: tuple[float, float], remedies: Remedies) -> list[float]:
    """What the optimizer really does to a weight that is regrown after step ``born``, in units of the learning rate."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    group = {"params": [weight], "aged": True, "eps": 1e-300}
    optimizer = SmetAdamW([group], lr=LR, betas=betas, remedies=remedies)
    optimizer.steps_done = born
    code, _ = optimizer.ages.open(born)
    optimizer.ensure_state(weight, aged=True)["birth"].fill_(code)
    moves = []
    for gradient in gradients:
        before = weight.item()
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        moves.append((weight.item() - before) / LR)
    return moves


gradients = st.lists(
    st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e-30, -1e-12, 1e12])).filter(
        lambda g: g == 0 or abs(g) > 1e-60
    ),
    min_size=1,
    max_size=40,
)
betas = st.tuples(st.floats(0.0, 0.95), st.floats(0.96, 0.9999))


@settings(max_examples=150, deadline=None)
@given(gradients=gradients, born=st.integers(1, 20_000), betas=betas, method=st.sampled_from(list(METHODS)))
def test_no_gradients_move_a_weight_further(
    gradients: list[float], born: int, betas: tuple[float, float], method: str
) -> None:
    remedies = METHODS[method]
    moves = updates(gradients, born, betas, remedies)
    for age, move in enumerate(moves, start=1):
        assert abs(move) <= update_bound(age, betas, born + age, remedies) * (1 + 1e-9)
    assert abs(sum(moves)) <= displacement_bound(len(moves), betas, born + 1, remedies) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(age=st.integers(1, 200), betas=betas, method=st.sampled_from(list(METHODS)))
def test_the_bound_of_one_update_is_attained(age: int, betas: tuple[float, float], method: str) -> None:
    ratio = max(betas[0], 1e-3) / betas[1]
    powers = [ratio ** (age - j) for j in range(1, age + 1)] if betas[0] > 1e-3 else [0.0] * (age - 1) + [1.0]
    worst = [power if power > 1e-60 else 0.0 for power in powers]  # the square of less is no number any more
    last = updates(worst, 10_000, betas, METHODS[method])[-1]
    assert abs(last) == pytest.approx(update_bound(age, betas, 10_000 + age, METHODS[method]), rel=2e-3)


def test_a_constant_gradient_moves_by_one_rate_with_its_own_age_and_by_more_with_the_runs_step() -> None:
    own = updates([0.3] * 50, 10_000, (0.9, 0.999), LOCAL)
    assert own == pytest.approx([-1.0] * 50, rel=1e-9)
    naive = [abs(move) for move in updates([0.3] * 50, 10_000, (0.9, 0.999), NAIVE)]
    assert naive[0] == pytest.approx(3.16, abs=0.005)
    assert max(range(50), key=naive.__getitem__) + 1 == 12 and max(naive) == pytest.approx(6.57, abs=0.005)


def rows(title: str) -> list[list[float]]:
    """Numbers of the page's table whose first heading is ``title``."""
    assert PAGE.count(f"| {title} |") == 1
    after = PAGE[PAGE.index(f"| {title} |") :].split("\n\n")[0].splitlines()[2:]
    return [[float(cell) for cell in re.findall(r"[\d.]+", row)] for row in after]


def printed(value: float, like: float) -> bool:
    digits = len(repr(like).partition(".")[2])
    return round(value, digits) == like or abs(value - like) <= 0.5 * 10**-digits + 1e-9


def test_the_page_states_what_the_functions_give() -> None:
    for age, *cells in rows("age a"):
        for cell, remedies in zip(cells, METHODS.values(), strict=True):
            assert printed(update_bound(int(age), (0.9, 0.999), 10_000 + int(age), remedies), cell), (age, cell)
    for steps, *cells in rows("first S updates together"):
        for cell, remedies in zip(cells, METHODS.values(), strict=True):
            assert printed(displacement_bound(int(steps), (0.9, 0.999), 10_001, remedies), cell), (steps, cell)
    assert f"{momentum_ratio_bound(10**6, (0.9, 0.999)):.2f}" == "7.27" and "= 7.27, Adam's own worst case" in PAGE


def test_the_page_states_what_is_left_at_the_beta2_of_the_run_files() -> None:
    preset = Path(__file__).parents[2] / "configs" / "presets" / "measured.yaml"
    b1, b2 = betas = (0.9, yaml.safe_load(preset.read_text())["optimizer"]["beta2"])
    for steps, *cells in rows(f"first S updates together, b2 = {b2}"):
        for cell, remedies in zip(cells, METHODS.values(), strict=True):
            assert printed(displacement_bound(int(steps), betas, 10_001, remedies), cell), (steps, cell)
    constant = {age: (1 - b1**age) / math.sqrt(1 - b2**age) for age in range(1, 500)}
    top = max(constant, key=constant.__getitem__)
    worst = max(update_bound(age, betas, 10_000 + age, remedies) for age in constant for remedies in METHODS.values())
    page = " ".join(PAGE.split())
    assert f"The first naive update is {constant[1]:.2f} lr_d;" in page
    assert f"under a constant gradient the factor peaks at {constant[top]:.2f} at age {top};" in page
    assert f"(3) is at most {worst:.2f} lr_d at any age" in page


def test_naive_adam_needs_a_clock() -> None:
    with pytest.raises(ValueError, match="needs the clock"):
        update_bound(3, (0.9, 0.999), remedies=NAIVE)
