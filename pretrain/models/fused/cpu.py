"""The steps in C++ (``cpu.cpp``), for bf16 and fp32 on the CPU; the functions are those of ``plain``.

They use the threads that torch uses, and their results do not depend on how many those are.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from smet.kernels import compiler

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled steps.

    Raises:
        smet.kernels.compiler.BuildError: they cannot be built or loaded here.
    """
    source = Path(__file__).with_name("cpu.cpp")
    built = compiler.load(compiler.build(source, more=("-fopenmp", "-ffp-contract=fast")))
    pointer, count, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    signatures = {
        "norm": [pointer] * 4 + [count] * 2 + [real, integer],
        "norm_gradient": [pointer] * 6 + [count] * 2 + [integer],
        "gated": [pointer] * 3 + [count, integer],
        "gated_gradient": [pointer] * 5 + [count, integer],
        "turn": [pointer] * 6 + [count] * 5 + [real, integer],
        "attention_slope": [pointer] * 4 + [count] * 2 + [real, integer],
        "entropy": [pointer] * 2 + [count] + [pointer] * 2 + [count] * 2 + [real, integer],
    }
    for dtype in DTYPES.values():
        for name, types in signatures.items():
            function = getattr(built, f"fused_{name}_{dtype}")
            function.argtypes, function.restype = types, count if name == "entropy" else None
    return built


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``plain.norm``."""
    _require(weight.shape == x.shape[-1:], "norm", x, weight)
    x, factors = x.contiguous(), weight.float().contiguous()
    y, root = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    _call("norm", x, x, factors, y, root, root.numel(), x.shape[-1], eps)
    return y, root


def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """See ``plain.norm_gradient``."""
    grad, x, factors = grad.contiguous(), x.contiguous(), weight.float().contiguous()
    back, slope = torch.empty_like(x), torch.empty_like(factors)
    _call("norm_gradient", x, grad, x, factors, root, back, slope, root.numel(), x.shape[-1])
    return back, slope.to(weight.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """See ``plain.gated``."""
    _require(gate.shape == up.shape, "gate", gate, up)
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    _call("gated", gate, gate, up, y, gate.numel())
    return y


def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See ``plain.gated_gradient``."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    back, slope = torch.empty_like(gate), torch.empty_like(up)
    _call("gated_gradient", gate, grad, gate, up, back, slope, gate.numel())
    return back, slope


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """See ``plain.turn``; what is returned lies as ``x`` does."""
    batch, heads, length, width = x.shape
    _require(cos.shape == sin.shape == (length, width), "rotation", x, cos, sin)
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    x = x if x.stride(3) == 1 else x.contiguous()
    y = torch.empty_like(x)
    strides = [(ctypes.c_int64 * 3)(*t.stride()[:3]) for t in (x, y)]
    _library("turn", x)(
        x.data_ptr(), strides[0], y.data_ptr(), strides[1], cos.data_ptr(), sin.data_ptr(), cos.stride(0), batch, heads,
        length, width, direction, torch.get_num_threads(),
    )  # fmt: skip
    return y


def entropy(logits: Tensor, wanted: Tensor, ignored: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """See ``plain.entropy``.

    Raises:
        RuntimeError: a target is no column of the logits, or there is not one for each row.
    """
    _require(wanted.shape == logits.shape[:1], "loss", logits, wanted)
    logits, wanted = logits.contiguous(), wanted.long().contiguous()
    rows, width = logits.shape
    losses, grad = logits.new_empty(rows, dtype=torch.float32), torch.empty_like(logits) if gradient else None
    wrong = _library("entropy", logits)(
        logits.data_ptr(), wanted.data_ptr(), ignored, losses.data_ptr(), None if grad is None else grad.data_ptr(),
        rows, width, 1 / max(1, rows), torch.get_num_threads(),
    )  # fmt: skip
    if wrong:
        raise RuntimeError(f"{wrong} targets are outside of the vocabulary of {width}")
    return losses, grad


def attention_slope(scores: Tensor, bias: Tensor | None, slope: Tensor, length: int, scale: float) -> Tensor:
    """From scores of queries and keys before they are scaled to probabilities, which are returned in the dtype of
    ``slope``; that of the probabilities becomes, in place, that of the scores.

    Args:
        scores: fp32, ``(n, heads * length, length)``: query ``row % length`` sees the keys up to itself; overwritten.
        bias: ``(length, length)``, added to the scaled scores; then all keys count.
        slope: like ``scores``, in bf16 or fp32.
    """
    bias = None if bias is None else bias.contiguous()
    probabilities = torch.empty_like(slope)
    rows = scores.numel() // length
    _call("attention_slope", slope, scores, bias, slope, probabilities, rows, length, scale)
    return probabilities


def _require(fits: bool, step: str, *operands: Tensor) -> None:
    """C++ takes addresses: what does not fit together would have it read what lies behind."""
    if not fits:
        shapes = " and ".join(" x ".join(map(str, operand.shape)) for operand in operands)
        raise RuntimeError(f"operands of the {step} do not fit together: {shapes}")


def _library(name: str, of: Tensor) -> ctypes._NamedFuncPointer:
    function: ctypes._NamedFuncPointer = getattr(library(), f"fused_{name}_{DTYPES[of.dtype]}")
    return function


def _call(name: str, of: Tensor, *arguments: Tensor | float | None) -> None:
    """Call ``name`` in the version for the dtype of ``of``."""
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    _library(name, of)(*plain, torch.get_num_threads())
