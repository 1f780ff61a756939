"""Loss and rotation as autograd functions against their plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models import functions
from pretrain.models.functions import IGNORED, MeanCrossEntropy, Rotate
from pretrain.models.llama.model import rotary_tables

DTYPES = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 1e-2)]
)


def plain_loss(logits: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return losses / targets.numel()


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 7, 11, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, 11, (3, 7), generator=generator)
    targets[1] = IGNORED  # a filler row
    targets[2, 3] = IGNORED
    return logits, targets


@DTYPES
@pytest.mark.parametrize("chunk", [1, 5 * 11, 1 << 20])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_loss_and_gradient(
    dtype: torch.dtype, tolerance: float, chunk: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(functions.CHUNK, "cpu", chunk)
    logits, targets = batch(dtype)
    expected = plain_loss(logits, targets)
    (wanted,) = torch.autograd.grad(expected * scale, logits)
    loss = MeanCrossEntropy.apply(logits, targets)
    (grad,) = torch.autograd.grad(loss * scale, logits)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=1e-7)
    assert not grad[1].any() and not grad[2, 3].any() and grad[0].any()


def test_without_gradients_nothing_is_kept() -> None:
    logits, targets = batch(torch.float32)
    with torch.no_grad():
        loss = MeanCrossEntropy.apply(logits, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(logits, targets).detach(), rtol=1e-6, atol=0)


def test_a_target_beyond_the_vocabulary_is_no_silent_zero() -> None:
    logits, targets = batch(torch.float32)
    targets[0, 0] = 11
    with pytest.raises(RuntimeError):
        MeanCrossEntropy.apply(logits, targets)


@DTYPES
def test_rotation_and_its_derivative(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    cos, sin = rotary_tables(6, 8, 10000.0, torch.device("cpu"))
    x = torch.randn(2, 6, 3, 8, generator=generator).to(dtype).transpose(1, 2).detach().requires_grad_()
    upstream = torch.randn(2, 3, 6, 8, generator=generator).to(dtype)
    turned, expected = Rotate.apply(x, cos, sin), plain_rotation(x, cos, sin)
    torch.testing.assert_close(turned, expected, rtol=tolerance, atol=1e-6)
    (grad,) = torch.autograd.grad(turned, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    assert turned.dtype == grad.dtype == dtype
    torch.testing.assert_close(grad, wanted, rtol=10 * tolerance, atol=10 * tolerance)
    back = Rotate.apply(turned.detach().float(), cos, -sin)
    torch.testing.assert_close(back, x.detach().float(), rtol=tolerance, atol=4 * tolerance)
