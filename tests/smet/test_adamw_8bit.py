"""Moments of one byte: what codes stand for, that rounding is fair, and that training is AdamW's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from smet import Remedies
from smet.optim import adamw_8bit
from smet.optim.adamw import AdamWFormula
from smet.optim.adamw_8bit import (
    AdamW8bit,
    hashed,
    mixed,
    reach,
    read_first,
    read_second,
    written_first,
    written_second,
)
from smet.optim.aged import AgedOptimizer


def rounded(first: Tensor, second: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
    codes = written_second(second, dither).to(torch.uint8)
    read = read_second(codes)
    return read_first(written_first(first, read, mixed(dither.clone())).to(torch.int8), read), read


def test_codes_of_the_second_moment_rise_and_are_written_as_they_were_read() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    moments = read_second(codes)
    assert moments[0] == 0 and moments[255] == 56 and bool((moments.diff() > 0).all())
    assert (moments[2:] / moments[1:-1]).max() == 1.25
    for dither in (0, -1, 12345):
        assert torch.equal(
            written_second(moments, torch.full((256,), dither, dtype=torch.int32) & ~0x1FFFFF), codes.int()
        )


def test_rounding_is_fair_and_depends_on_weight_gradient_and_step() -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(1 << 16) * 0.02, (torch.randn(1 << 16) * 1e-4).bfloat16()
    second = (torch.rand(1 << 16) * 20 - 40).exp2()
    first = (torch.rand(1 << 16) * 2 - 1) * second.sqrt()
    dithers = [hashed(weight, grad, step) for step in range(1, 65)]
    firsts, seconds = zip(*(rounded(first, second, dither) for dither in dithers), strict=True)
    assert (torch.stack(seconds).double().mean(0) / second - 1).mean().abs() < 1e-3
    assert ((torch.stack(firsts).double().mean(0) - first) / second.sqrt()).mean().abs() < 1e-3
    assert (torch.stack(seconds).double().mean(0) / second - 1).std() < 0.15 / 8 * 1.5, "steps round independently"
    assert not torch.equal(dithers[0], hashed(weight.roll(1), grad, 1))
    assert not torch.equal(dithers[0], hashed(weight, grad.roll(1), 1))


@pytest.mark.parametrize("gradient", [0.0, 1e-30, 1e-12, 1e-6, 1.0, 1e4, 1e18])
def test_steps_stay_as_long_as_adamws_whatever_the_size_of_gradients(gradient: float) -> None:
    ends = []
    for formula in (AdamW8bit, AdamWFormula):
        weight = nn.Parameter(torch.linspace(-1, 1, 64))
        optimizer = AgedOptimizer([weight], formula, lr=1e-2, remedies=Remedies(warmup_steps=1), betas=(0.9, 0.95))
        start = weight.detach().clone()
        for _ in range(20):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        ends.append((weight.detach() - start).abs())
    assert bool(ends[0].isfinite().all())
    assert ends[0].max() <= 1.5 * 1e-2 * 20
    if 1e-8 < gradient < 7:
        torch.testing.assert_close(ends[0].mean(), ends[1].mean(), rtol=0.05, atol=0)


def test_it_learns_as_adamw_does_and_a_cut_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(formula: type[AdamWFormula]) -> tuple[float, Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        optimizer = AgedOptimizer(model.parameters(), formula, lr=3e-3, betas=(0.9, 0.95))
        total = 0.0
        for step in range(200):
            x = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
            loss = (model(x) - x.roll(1, 1)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.item()
        return total, torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])

    loss, weights = train(AdamW8bit)
    exact, _ = train(AdamWFormula)
    assert loss == pytest.approx(exact, rel=0.05) and exact < 0.5
    monkeypatch.setattr(adamw_8bit, "CACHED", 100)
    assert torch.equal(train(AdamW8bit)[1], weights)


def test_a_regrown_weight_begins_with_nothing_and_takes_a_first_step_of_full_length() -> None:
    weight = nn.Parameter(torch.zeros(8))
    optimizer = AgedOptimizer(
        [{"params": [weight], "aged": True}], AdamW8bit, lr=1e-2, remedies=Remedies(warmup_steps=1)
    )
    for _ in range(30):
        weight.grad = torch.ones(8)
        optimizer.step()
    code, _ = optimizer.ages.open(optimizer.steps_done)
    state = optimizer.state[weight]
    for vector in (weight.detach(), state["exp_avg"], state["exp_avg_sq"]):
        vector[:4] = 0
    state["birth"][:4] = code
    before = weight.detach().clone()
    weight.grad = torch.full((8,), 1e-3)
    optimizer.step()
    assert (before - weight.detach())[:4] == pytest.approx([1e-2] * 4, rel=1e-3)


def test_no_first_moment_is_larger_than_reach_says() -> None:
    torch.manual_seed(0)
    for betas in ((0.9, 0.95), (0.9, 0.98), (0.8, 0.95), (0.95, 0.98)):
        first = second = 0.0
        for step in range(400):  # the worst gradients there are: each the larger the later, by beta1 / beta2
            grad = (betas[0] / betas[1]) ** (400 - step)
            first = betas[0] * first + (1 - betas[0]) * grad
            second = betas[1] * second + (1 - betas[1]) * grad**2
        assert 0.99 * reach(betas) < first / second**0.5 <= reach(betas) * (1 + 1e-9)
    assert reach((0.9, 0.8)) == float("inf")


@pytest.mark.gpu
def test_a_gpu_rounds_as_a_cpu_does_and_learns() -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(1 << 12) * 0.02, (torch.randn(1 << 12) * 1e-4).bfloat16()
    second = (torch.rand(1 << 12) * 20 - 40).exp2()
    here, there = (rounded(second.sqrt(), second, hashed(weight, grad, 7)),
                   rounded(second.sqrt().cuda(), second.cuda(), hashed(weight.cuda(), grad.cuda(), 7)))  # fmt: skip
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-6, atol=0)
    moved = nn.Parameter(torch.zeros(1000, device="cuda"))
    optimizer = AgedOptimizer([moved], AdamW8bit, lr=1e-2)
    for _ in range(20):
        moved.grad = torch.full_like(moved, -1e-3)
        optimizer.step()
    assert moved.detach().mean().item() == pytest.approx(0.2, rel=0.05)
