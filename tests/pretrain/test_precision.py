"""Products of bf16 that are made in fp32: the same numbers, forward and backward, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain import precision
from pretrain.config import load_config
from pretrain.summary import numbers

CPU = torch.device("cpu")
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def untouched() -> Iterator[None]:
    """Begin and end as torch has it, or as this process had it."""
    had = precision.are_widened()
    precision.restore_products()
    yield
    precision.restore_products()
    if had:
        precision.replace_products()


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(made: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What is made by torch's own products, and by replaced ones."""
    own = made()
    precision.replace_products()
    found = made()
    precision.restore_products()
    return own, found


def layers(dtype: torch.dtype) -> list[Tensor]:
    """What linear layers with and without a bias, and attention's products, come to, with all gradients."""
    x, weight, bias = (some(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in
                       enumerate([(3, 7, 48), (40, 48), (40,)]))  # fmt: skip
    y = F.linear(x, weight, bias)
    z = torch.bmm(y, F.linear(x, weight).transpose(1, 2))
    mixed = torch.baddbmm(z, y, y.transpose(1, 2), beta=0.5, alpha=2.0)
    scores = torch.addmm(mixed[0], mixed[1], mixed[2], beta=2.0, alpha=0.25)
    (scores.float().square().mean() + mixed.float().mean()).backward()
    return [
        y.detach(),
        z.detach(),
        mixed.detach(),
        scores.detach(),
        *(w.grad for w in (x, weight, bias) if w.grad is not None),
    ]


def test_operands_of_two_kinds_are_refused_as_torch_does(untouched: None) -> None:
    x, y, z = some(4, 4).bfloat16(), some(4, 4), some(4, 4).bfloat16()
    precision.replace_products()
    for product in (lambda: x @ y, lambda: y @ x, lambda: torch.addmm(x, y, y), lambda: torch.addmm(y, x, z)):
        with pytest.raises(RuntimeError, match="must have the same dtype|to have the same dtype"):
            product()


def test_products_of_bf16_are_the_same_to_their_rounding(untouched: None) -> None:
    own, found = results(lambda: layers(torch.bfloat16))
    exact = layers(torch.float64)
    assert len(own) == len(found) == 7
    for one, other, true in zip(own, found, exact, strict=True):
        assert other.dtype == torch.bfloat16 and other.shape == one.shape
        scale = true.abs().max()
        assert (other - true).abs().max() / scale < 0.03 and (other - one).abs().max() / scale < 0.03
    # One product of what is given: rounded once, as the exact one would be but for ties that fp32 decides otherwise.
    x, weight = some(64, 96).bfloat16(), some(80, 96, seed=1).bfloat16()
    precision.replace_products()
    once = F.linear(x, weight)
    assert (once != F.linear(x.double(), weight.double()).bfloat16()).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_products_keep_every_bit(untouched: None, dtype: torch.dtype) -> None:
    own, found = results(lambda: layers(dtype))
    assert all(torch.equal(one, other) for one, other in zip(own, found, strict=True))


def test_whole_numbers_and_nothing_are_multiplied_too(untouched: None) -> None:
    precision.replace_products()
    assert (torch.arange(6).view(2, 3) @ torch.arange(6).view(3, 2)).tolist() == [[10, 13], [28, 40]]
    empty = torch.zeros(0, 4, dtype=torch.bfloat16)
    assert (empty @ torch.zeros(4, 3, dtype=torch.bfloat16)).shape == (0, 3)
    assert (empty.t() @ torch.zeros(0, 3, dtype=torch.bfloat16)).tolist() == [[0.0] * 3] * 4
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.zeros(2, 3, dtype=torch.bfloat16) @ torch.zeros(2, 3, dtype=torch.bfloat16)


def test_only_processors_without_bf16_need_it_and_the_run_says_so(
    untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [load_config(QUICKSTART, [f"train.precision={name}"]) for name in ("bf16", "fp32")]
    plain = [f"{name} weights and gradients, fp32 master and moments" for name in ("bf16", "fp32")]
    for device, has_bf16 in ((CPU, True), (torch.device("cuda"), False)):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda has=has_bf16: has)
        precision.widen_products(device)
        assert not precision.are_widened() and [numbers(config) for config in configs] == plain
    precision.widen_products(CPU)
    precision.widen_products(CPU)
    assert len(precision._replaced) == 1
    wide = "; products in fp32 and rounded, as this processor has none of bf16"
    assert [numbers(config) for config in configs] == [plain[0] + wide, plain[1]]


def test_nothing_is_left_of_it(untouched: None) -> None:
    x = some(8, 8).bfloat16()
    before = x @ x
    precision.replace_products()
    precision.restore_products()
    assert torch.equal(x @ x, before) and not precision.are_widened()
