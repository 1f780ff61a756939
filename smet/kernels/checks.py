"""What the kernels take: tensors with memory of their own, on one device, of one size.

The fast versions get addresses and sizes. A tensor whose ``data_ptr()`` is no address of ``numel()`` elements (one
that is spread over ranks, or a stand-in for another) must not get as far as that. Every check looks at what
Python knows of a tensor anyway; none looks at its content or waits for a device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smet.errors import ConfigError

_PLAIN = (Tensor, nn.Parameter)


def plain(name: str, tensor: Any) -> None:
    """Refuse what is not an ordinary strided tensor with memory of its own.

    Raises:
        ConfigError: a ``DTensor`` (FSDP2, torch's tensor parallelism), another wrapper, or a sparse layout.
    """
    if type(tensor) in _PLAIN and tensor.layout is torch.strided:
        return
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.layout is not torch.strided:
        raise ConfigError(
            f"{name} has the layout {tensor.layout}, expected strided memory; make embeddings with sparse=False"
        )
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        kind = type(tensor).__name__
        raise ConfigError(
            f"{name} is a {kind}, expected a plain tensor"
            + ("; FSDP and torch's tensor parallelism are not supported: use DeepSpeed's ZeRO "
               "(smet.zero.ZeroStore) or DistributedDataParallel" if kind == "DTensor" else "")
        )  # fmt: skip


def real(name: str, tensor: Tensor) -> None:
    """Refuse, beside what ``plain`` refuses, what Adam has no rule for: complex, integer and bool tensors.

    Raises:
        ConfigError: it is one.
    """
    plain(name, tensor)
    if not tensor.dtype.is_floating_point:
        raise ConfigError(f"{name} is {tensor.dtype}, expected a real floating-point type")


def adamw(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, birth: Tensor | None,
    step_size: Tensor, correction: Tensor,
) -> None:  # fmt: skip
    """Refuse arguments of ``smet.kernels.adamw`` that are not what ``reference.adamw`` says.

    Raises:
        ConfigError: see ``real``.
        RuntimeError: devices, sizes or dtypes that do not fit together.
    """
    for name, tensor in (("weight", weight), ("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        real(name, tensor)
    for name, tensor in (("step_size", step_size), ("correction", correction)):
        real(name, tensor)
        if tensor.device != weight.device or not tensor.numel():
            raise RuntimeError(f"{name} has {tensor.numel()} entries on {tensor.device}, weight is on {weight.device}")
    vectors = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if birth is not None:
        plain("birth", birth)
        if birth.dtype != torch.uint8:
            raise RuntimeError(f"birth is {birth.dtype}, expected torch.uint8")
        vectors["birth"] = birth
    for name, tensor in vectors.items():
        if tensor.shape != weight.shape or tensor.device != weight.device:
            raise RuntimeError(
                f"expected vectors of {weight.numel()} on {weight.device}, "
                f"got {name} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
    if exp_avg.dtype != weight.dtype or exp_avg_sq.dtype != weight.dtype:
        raise RuntimeError(f"weight is {weight.dtype}, its moments are {exp_avg.dtype} and {exp_avg_sq.dtype}")
