"""Norms, gates, rotation, attention and loss as autograd functions, in every version, against their plain formulas."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models import functions, fused
from pretrain.models.functions import IGNORED, MeanCrossEntropy, RMSNorm, Rotate, attention, swiglu
from pretrain.models.fused import compiled, cpu, plain
from pretrain.models.llama.model import rotary_tables

DTYPES = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 1e-2)]
)
PAIRS = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)]


@pytest.fixture(params=[fused.FUSED, fused.PLAIN])
def which(request: pytest.FixtureRequest) -> Iterator[str]:
    fused.choose(request.param)
    yield request.param
    fused.choose(fused.FUSED)


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float(((found.double() - exact.double()).norm() / exact.double().norm()).detach())


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


def test_there_is_a_fast_version_here() -> None:
    x = torch.zeros(2, 16)
    assert fused.steps(x) is cpu and fused.steps(x.bfloat16(), x.bfloat16()) is cpu
    assert fused.steps(x.double()) is plain and fused.steps(x, x.bfloat16()) is plain
    assert fused.steps(x.to("meta")) is plain and fused.steps(torch.nn.Buffer(x).as_subclass(torch.nn.Buffer)) is plain


def test_without_a_compiler_the_formulas_do_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "_cpu", lambda: (_ for _ in ()).throw(RuntimeError("no compiler found\nat all")))
    fused._on.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert fused.steps(torch.zeros(1)) is plain and fused.steps(torch.zeros(1)) is plain
    finally:
        fused._on.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "norms, gates and the loss are plain torch on cpu, because no compiler found"
    ]


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast' is none of fused, plain"):
        fused.choose("fast")


@DTYPES
@pytest.mark.parametrize("chunk", [1, 5 * 11, 1 << 20])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_loss_and_gradient(
    dtype: torch.dtype, tolerance: float, chunk: int, scale: float, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plain.CHUNK, "cpu", chunk)
    logits, targets = batch(dtype)
    expected = plain_loss(logits, targets)
    (wanted,) = torch.autograd.grad(expected * scale, logits)
    loss = MeanCrossEntropy.apply(logits, targets)
    (grad,) = torch.autograd.grad(loss * scale, logits)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=1e-7)
    assert not grad[1].any() and not grad[2, 3].any() and grad[0].any()


@pytest.mark.parametrize("vocabulary", [16, 1500, 2053])
def test_loss_of_many_logits_and_of_far_ones(vocabulary: int, which: str) -> None:
    logits = 40 * normal(2, 3, vocabulary)
    logits[0, 0, 0], logits[0, 1, -1], targets = 300.0, -1e30, torch.zeros(2, 3, dtype=torch.long)
    targets[0, 1] = vocabulary - 1  # hopeless: 1e30 nats, and a gradient all the same
    x = logits.requires_grad_()
    loss = MeanCrossEntropy.apply(x, targets)
    torch.testing.assert_close(loss, plain_loss(x, targets), rtol=1e-6, atol=0)
    got, wanted = (torch.autograd.grad(each, x)[0] for each in (loss, plain_loss(x, targets)))
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=1e-9)


def test_what_is_no_number_makes_the_loss_none(which: str) -> None:
    logits, targets = batch(torch.float32)
    with torch.no_grad():
        logits[0, 2, 10] = torch.nan
    loss = MeanCrossEntropy.apply(logits, targets)
    assert loss.isnan() and torch.autograd.grad(loss, logits)[0][0, 2].isnan().all()
    x = normal(2, 20, dtype=torch.bfloat16)
    x[1, 19] = torch.nan
    assert RMSNorm(20, eps=1e-6).bfloat16()(x)[1].isnan().all() and swiglu(x, x)[1].isnan().tolist() == [False] * 19 + [
        True
    ]


def test_without_gradients_nothing_is_kept(which: str) -> None:
    logits, targets = batch(torch.float32)
    with torch.no_grad():
        loss = MeanCrossEntropy.apply(logits, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(logits, targets).detach(), rtol=1e-6, atol=0)


def test_a_target_beyond_the_vocabulary_is_no_silent_zero(which: str) -> None:
    logits, targets = batch(torch.float32)
    targets[0, 0] = 11
    with pytest.raises(RuntimeError):
        MeanCrossEntropy.apply(logits, targets)


@DTYPES
def test_rotation_and_its_derivative(dtype: torch.dtype, tolerance: float, which: str) -> None:
    cos, sin = rotary_tables(6, 8, 10000.0, torch.device("cpu"))
    x = normal(2, 6, 3, 8, dtype=dtype).transpose(1, 2).detach().requires_grad_()
    upstream = normal(2, 3, 6, 8, dtype=dtype, seed=1)
    turned, expected = Rotate.apply(x, cos, sin), plain_rotation(x, cos, sin)
    torch.testing.assert_close(turned, expected, rtol=tolerance, atol=1e-6)
    (grad,) = torch.autograd.grad(turned, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    assert turned.dtype == grad.dtype == dtype
    torch.testing.assert_close(grad, wanted, rtol=10 * tolerance, atol=10 * tolerance)
    back = Rotate.apply(turned.detach().float(), cos, -sin)
    torch.testing.assert_close(back, x.detach().float(), rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype, tolerance", PAIRS)
@pytest.mark.parametrize("rows, width", [(1, 16), (3, 40), (70, 7)])
def test_norm_and_gate(dtype: torch.dtype, tolerance: float, rows: int, width: int) -> None:
    x, y = (normal(2, rows, width, dtype=dtype, seed=seed).requires_grad_() for seed in (0, 1))
    upstream = normal(2, rows, width, dtype=dtype, seed=2)
    norm = RMSNorm(width, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(width, seed=3))
    norm = norm.to(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, norm.weight, y)]
    normed = F.rms_norm(exact[0], (width,), exact[1], 1e-5)
    for found, wanted, inputs, doubles in (
        (norm(x), normed, (x, norm.weight), exact[:2]),
        (swiglu(x, y), F.silu(exact[0]) * exact[2], (x, y), exact[::2]),
    ):
        assert found.dtype == dtype and error(found, wanted) < tolerance
        got = torch.autograd.grad(found, inputs, upstream)
        for one, other in zip(got, torch.autograd.grad(wanted, doubles, upstream.double()), strict=True):
            assert one.dtype == dtype and error(one, other) < tolerance


@pytest.mark.parametrize("dtype, tolerance", PAIRS)
@pytest.mark.parametrize("shared, documents", [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_attention(
    dtype: torch.dtype, tolerance: float, shared: int, documents: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "SCORES", step)  # a head at a time, one or two of a sequence, or all of them
    query = normal(2, 3 * shared, 21, 8, dtype=dtype).requires_grad_()
    key, value = (normal(2, 21, 3, 8, dtype=dtype, seed=n).transpose(1, 2).requires_grad_() for n in (1, 2))
    bias = None
    if documents:
        seen = torch.ones(21, 21).tril()
        seen[9:, :9] = 0  # another document
        bias = torch.zeros(2, 1, 21, 21, dtype=dtype).masked_fill_(seen == 0, -torch.inf)
    upstream = normal(2, 3 * shared, 21, 8, dtype=dtype, seed=3)
    found = attention(query, key, value, bias)
    assert type(found.grad_fn).__name__ == "AttendedBackward"
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    q, k, v = exact[0], *(tensor.repeat_interleave(shared, dim=1) for tensor in exact[1:])
    scores = q @ k.transpose(2, 3) * 8**-0.5
    mask = torch.ones(21, 21).tril() == 0
    scores = scores.masked_fill(mask, -torch.inf) if bias is None else scores + bias.double()
    wanted = scores.softmax(-1) @ v
    assert error(found, wanted) < tolerance
    got = torch.autograd.grad(found, (query, key, value), upstream)
    for one, other in zip(got, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert one.dtype == dtype and error(one, other) < 1.5 * tolerance


def test_large_attention_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MOST_SCORES", 20)
    query = normal(1, 1, 5, 8).requires_grad_()
    assert type(attention(query, query, query, None).grad_fn).__name__ != "AttendedBackward"


def test_results_do_not_depend_on_threads() -> None:
    x, weight, threads = normal(50, 24), normal(24, seed=1), torch.get_num_threads()
    _, root = cpu.norm(x, weight, 1e-6)
    found = []
    try:
        for team in (1, 3):
            torch.set_num_threads(team)
            found.append(cpu.norm_gradient(x + 1, x, weight, root))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_every_step_is_there_for_every_type() -> None:
    assert isinstance(cpu.library(), ctypes.CDLL)
    names = ("norm", "norm_gradient", "gated", "gated_gradient", "turn", "entropy")
    versions: tuple[ModuleType, ...] = (plain, cpu)
    assert all(callable(getattr(version, name)) for version in versions for name in names)
    assert all(callable(getattr(compiled, name)) for name in names if "norm" not in name)  # torch's own is faster there


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their formulas as they are: what a compiler makes of them is looked at where there is a GPU."""
    monkeypatch.setattr(torch, "compile", lambda formula, **_: formula)
    compiled._compiled.cache_clear()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype, tolerance", PAIRS)
def test_formulas_that_are_compiled(dtype: torch.dtype, tolerance: float) -> None:
    x, y = (normal(2, 5, 12, dtype=dtype, seed=seed) for seed in (0, 1))
    cos, sin = rotary_tables(5, 4, 10000.0, torch.device("cpu"))
    heads = x.view(2, 5, 3, 4).transpose(1, 2)
    targets = torch.tensor([3, IGNORED, 0, 11, 5] * 2)
    calls = {
        "gated": (x, y), "gated_gradient": (y, x, x),
        "turn": (heads, cos, sin, -1.0), "entropy": (x.flatten(0, 1), targets, -100, True),
    }  # fmt: skip
    for name, operands in calls.items():
        found, wanted = (getattr(version, name)(*operands) for version in (compiled, plain))
        if isinstance(found, Tensor):
            found, wanted = (found,), (wanted,)
        assert all(error(*pair) < tolerance for pair in zip(found, wanted, strict=True)), name
    assert compiled.turn(heads, cos, sin, 1.0).stride() == heads.stride()
    losses, nothing = compiled.entropy(x.flatten(0, 1), targets, -100, False)
    assert nothing is None and error(losses, wanted[0]) < tolerance


def test_what_cannot_be_compiled_is_plain_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Exception):
        """As the compiler raises."""

    Broken.__module__ = "torch._inductor.exc"

    def run(*_: Tensor) -> Tensor:
        raise Broken("no ptxas\nin some place")

    monkeypatch.setattr(torch, "compile", lambda formula, **_: run)
    step = compiled._Compiled(plain.gated)
    x = normal(3, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(step(x, x), plain.gated(x, x)) and torch.equal(step(x, x), plain.gated(x, x))
    assert [record.getMessage() for record in caplog.records] == [
        "gated is not compiled but plain torch, because no ptxas"
    ]
    with pytest.raises(RuntimeError):
        step(x, normal(3, 5))  # a fault of the caller's stays one


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", PAIRS)
def test_on_a_gpu_fused_is_plain(dtype: torch.dtype, tolerance: float) -> None:
    from tools.bench.card import formulas
    from tools.bench.card.settings import Shapes

    shapes = Shapes(rows=2, length=24, heads=3, head_dim=16, inner=88, vocabulary=1000)
    for name, step in formulas.steps(shapes, "cuda"):
        exact = formulas.both(step, torch.float32, fused.PLAIN)()
        found = formulas.both(step, dtype, fused.FUSED)()
        assert all(error(*pair) < tolerance for pair in zip(found, exact, strict=True)), name


@pytest.mark.parametrize("kind", ["part of a longer one", "by head", "learned", "for all rows"])
def test_any_bias_of_attention(kind: str) -> None:
    query, key, value = (normal(2, 4, 9, 16, seed=seed).requires_grad_() for seed in range(3))
    shapes = {"by head": (2, 4, 9, 9), "for all rows": (1, 1, 9, 9)}
    bias = normal(*shapes.get(kind, (2, 1, 9, 9)), seed=3).requires_grad_(kind == "learned")
    if kind == "part of a longer one":
        bias = normal(2, 1, 12, 12, seed=3)[..., :9, :9]
    wanted_of = [query, key, value, *([bias] if kind == "learned" else [])]
    expected = F.scaled_dot_product_attention(*(x.double() for x in (query, key, value)), attn_mask=bias.double())
    wanted = torch.autograd.grad(expected.square().sum(), wanted_of)
    got = torch.autograd.grad(attention(query, key, value, bias).square().sum(), wanted_of)
    assert all(error(one, other) < 1e-4 for one, other in zip(got, wanted, strict=True))


def test_attention_under_autocast_and_of_nothing() -> None:
    query, key, value = (normal(2, 4, 9, 16, seed=seed).requires_grad_() for seed in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(query, key, value, None).sum().backward()
    assert query.grad is not None and bool(query.grad.isfinite().all())
    assert attention(*(x[:, :, :0] for x in (query, key, value)), None).shape == (2, 4, 0, 16)


def test_operands_that_do_not_fit_are_refused_or_left_to_torch() -> None:
    cos, sin = rotary_tables(5, 8, 10000.0, torch.device("cpu"))
    x, logits, targets = normal(1, 2, 5, 8), normal(1, 4, 7), torch.tensor([[1, 2, 3, 4]])
    for call in (
        lambda: RMSNorm(8, eps=1e-5)(torch.ones(2, 16)),
        lambda: swiglu(torch.ones(16), torch.ones(7)),
        lambda: MeanCrossEntropy.apply(logits, targets.repeat(1, 3)),
        lambda: Rotate.apply(x, cos[:3], sin[:3]),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert torch.equal(RMSNorm((2, 8), eps=1e-5)(x.view(5, 2, 8)), nn.RMSNorm((2, 8), eps=1e-5)(x.view(5, 2, 8)))
    assert torch.equal(swiglu(torch.ones(2, 8), 3 * torch.ones(8)), F.silu(torch.ones(2, 8)) * 3)
    assert RMSNorm(8, eps=1e-5, elementwise_affine=False)(x).shape == x.shape
    assert torch.equal(MeanCrossEntropy.apply(logits, targets.int()), MeanCrossEntropy.apply(logits, targets))
    strided = [torch.stack([table, table], -1)[..., 0] for table in (cos, sin)]
    assert torch.equal(Rotate.apply(x, *strided), Rotate.apply(x, cos, sin))


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_the_loss_of_large_logits(offset: float) -> None:
    logits, targets = normal(1, 50, 900) + offset, torch.arange(50).view(1, 50)
    exact = F.cross_entropy(logits[0].double(), targets[0])
    assert float(MeanCrossEntropy.apply(logits, targets)) == pytest.approx(float(exact), rel=1e-6)
