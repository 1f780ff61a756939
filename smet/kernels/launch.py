"""Launches of Triton kernels that cost less Python than Triton's own.

Triton looks at every argument of every launch to find the compiled kernel that fits it, some 20 microseconds each
time. Who knows that nothing which matters has changed since the last launch can go straight to that kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16
"""Bytes; Triton compiles one kernel for tensors that begin at a multiple, and others for those that do not."""
NOTHING: AbstractContextManager[Any] = nullcontext()
_kept: dict[Hashable, Any] = {}


def run(
    kernel: Any, programs: tuple[int, int], arguments: tuple[Any, ...], constants: tuple[Any, ...],
    key: Hashable | None, **options: int,
) -> None:  # fmt: skip
    """Launch ``kernel`` over ``programs`` programs on the current device.

    Args:
        arguments: those before the constants.
        constants: the kernel's ``constexpr`` arguments, which come last.
        key: tells everything that decides about the compiled kernel: all numbers, constants and dtypes, the device and
            whether every tensor is ``aligned``; None = do not keep it.
        options: as Triton takes them, such as ``num_warps``.
    """
    known = _kept.get(key) if key is not None else None
    if known is not None:
        known[programs + (1,)](*arguments, *constants)  # noqa: RUF005 (Python 3.10 knows no star in an index)
        return
    made = kernel[programs](*arguments, *constants, **options)
    if key is not None and made is not None:  # the interpreter compiles nothing
        _kept[key] = made


def aligned(*tensors: Tensor) -> bool:
    """Whether all of them begin where Triton's usual kernels expect it."""
    return not any(tensor.data_ptr() % ALIGNED for tensor in tensors)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which the device of ``tensor`` is the current one; it mostly is, and then costs nothing."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return NOTHING
    return torch.cuda.device(tensor.device)
