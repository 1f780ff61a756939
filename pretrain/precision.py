"""``train.precision`` as torch's types, and products of bf16 on processors that have no instructions for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What weights and activations are, by the setting's word."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
"""What products of matrices come down to in torch, forward and backward."""

_replaced: list[torch.library.Library] = []
"""What holds the replacements in place: they go when it does."""


def multiplies_bf16() -> bool:
    """Whether torch has a fast product of bf16 on this processor; without AVX-512 or its like it has a plain loop."""
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())  # where torch does not say, its own products are left alone


def widen_products(device: torch.device) -> None:
    """Let products of bf16 on a CPU be made in fp32 and rounded, where torch's own are a plain loop.

    That is many times faster, and no less exact: each number of bf16 is one of fp32, and sums are rounded once, as
    instructions for bf16 do it. Holds in the whole process, so it is for programs, never for a library.

    Args:
        device: that of the run; a GPU needs none of this.
    """
    if device.type == "cpu" and not _replaced and not multiplies_bf16():
        replace_products()


def replace_products() -> None:
    """What ``widen_products`` does, on any processor."""
    library = torch.library.Library("aten", "IMPL")  # docs.pytorch.org/docs/stable/library.html: extends or overrides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the purpose
        for name in PRODUCTS:
            library.impl(name, _wide(getattr(torch.ops.aten, name).out), "CPU")
    _replaced.append(library)


def restore_products() -> None:
    """Let torch make all products again."""
    while _replaced:
        _replaced.pop()._destroy()


def are_widened() -> bool:
    """Whether products of bf16 are made in fp32."""
    return bool(_replaced)


def _wide(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``original`` writes into ``out``, which is torch's own kernel still."""

    def product(*operands: Tensor, **factors: Any) -> Tensor:
        if any(operand.dtype is not torch.bfloat16 for operand in operands):  # mixed ones are torch's to refuse
            return original(*operands, **factors, out=operands[0].new_empty(0))
        wide = [operand.float() for operand in operands]
        return original(*wide, **factors, out=wide[0].new_empty(0)).bfloat16()

    return product
