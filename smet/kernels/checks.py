"""What the kernels take: tensors with memory of their own, on one device, of one size.

The fast versions get addresses and sizes. A tensor whose ``data_ptr()`` is no address of ``numel()`` elements (one
that is spread over ranks, or a stand-in for another) must not get as far as that. Every check looks at what
Python knows of a tensor anyway; none looks at its content or waits for a device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smet.errors import ConfigError
from smet.kernels.step import AdamStep
from smet.kernels.watched import PLAIN, STRIDED, stands_in


def plain(name: str, tensor: Any) -> None:
    """Refuse what is not an ordinary strided tensor with memory of its own.

    Raises:
        ConfigError: a ``DTensor`` (FSDP2, torch's tensor parallelism), another wrapper, or a sparse layout.
    """
    if (problem := _problem(name, tensor)) is not None:
        raise ConfigError(problem)


def traceable(name: str, tensor: Any) -> None:
    """Refuse what ``plain`` refuses, but for tensors that stand for plain ones: those come to operators alone.

    Raises:
        ConfigError: see ``plain``.
        TypeError: the same inside ``torch.compile``, which knows no other errors than Python's.
    """
    if type(tensor) not in PLAIN and isinstance(tensor, Tensor) and stands_in(tensor):
        return
    if (problem := _problem(name, tensor)) is not None:
        if torch.compiler.is_compiling():
            raise TypeError(problem)
        raise ConfigError(problem)


def _problem(name: str, tensor: Any) -> str | None:
    if type(tensor) in PLAIN and tensor.layout is STRIDED:
        return None
    if not isinstance(tensor, Tensor):
        return f"{name} is a {type(tensor).__name__}, expected a tensor"
    if tensor.layout is not STRIDED:
        return f"{name} has the layout {tensor.layout}, expected strided memory; make embeddings with sparse=False"
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return None
    kind = type(tensor).__name__
    return f"{name} is a {kind}, expected a plain tensor" + (
        "; what fully_shard (FSDP2) cut is whole inside the model's forward pass and after unshard(), and"
        " torch's tensor parallelism is not supported" if kind == "DTensor" else ""
    )  # fmt: skip


def real(name: str, tensor: Tensor) -> None:
    """Refuse, beside what ``traceable`` refuses, what Adam has no rule for: complex, integer and bool tensors.

    Raises:
        ConfigError: it is one.
    """
    if type(tensor) not in PLAIN or tensor.layout is not STRIDED:
        traceable(name, tensor)
    if not tensor.dtype.is_floating_point:
        raise ConfigError(f"{name} is {tensor.dtype}, expected a real floating-point type")


def adamw(step: AdamStep) -> None:
    """Refuse what is not as ``AdamStep`` says.

    Raises:
        ConfigError: see ``real``.
        RuntimeError: devices, sizes or dtypes that do not fit together.
    """
    weight = step.weight
    for name in ("weight", "grad", "exp_avg", "exp_avg_sq"):
        real(name, getattr(step, name))
    for name in ("step_size", "correction"):
        tensor = getattr(step, name)
        real(name, tensor)
        if tensor.device != weight.device or not tensor.numel():
            raise RuntimeError(f"{name} has {tensor.numel()} entries on {tensor.device}, weight is on {weight.device}")
    vectors = {"grad": step.grad, "exp_avg": step.exp_avg, "exp_avg_sq": step.exp_avg_sq}
    if step.birth is not None:
        traceable("birth", step.birth)
        if step.birth.dtype != torch.uint8:
            raise RuntimeError(f"birth is {step.birth.dtype}, expected torch.uint8")
        vectors["birth"] = step.birth
    for name, tensor in vectors.items():
        if tensor.shape != weight.shape or tensor.device != weight.device:
            raise RuntimeError(
                f"expected vectors of {weight.numel()} on {weight.device}, "
                f"got {name} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
    moments = step.exp_avg.dtype, step.exp_avg_sq.dtype
    if any(dtype != weight.dtype for dtype in moments):
        raise RuntimeError(f"weight is {weight.dtype}, its moments are {moments[0]} and {moments[1]}")
