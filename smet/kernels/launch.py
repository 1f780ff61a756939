"""Launches of Triton kernels that cost less Python than Triton's own.

Triton looks at every argument of every launch to find the compiled kernel that fits it, some 20 microseconds each
time. Who knows that nothing which matters has changed since the last launch can go straight to that kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from torch import Tensor

ALIGNED = 16
"""Bytes; Triton compiles one kernel for tensors that begin at a multiple, and others for those that do not."""
_kept: dict[Hashable, Any] = {}


class Options(Protocol):
    """Of how one program works, what Triton wants to know."""

    @property
    def warps(self) -> int: ...

    @property
    def stages(self) -> int: ...


def run(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: tuple[Any, ...], key: Hashable, options: Options
) -> None:
    """Launch ``kernel`` over ``programs`` programs on the current device.

    Args:
        arguments: those before the constants.
        constants: the kernel's ``constexpr`` arguments, which come last.
        key: tells everything that decides about the compiled kernel: all numbers, constants and dtypes. Where tensors
            begin is looked at here.
    """
    first = arguments[0]
    device = (first if isinstance(first, Tensor) else first.base).device
    aligned = all(not (isinstance(given, Tensor) and given.data_ptr() % ALIGNED) for given in arguments)
    key = (key, device)
    known = _kept.get(key) if aligned else None
    if known is not None:
        known[(programs, 1, 1)](*arguments, *constants)
        return
    made = kernel[(programs,)](*arguments, *constants, num_warps=options.warps, num_stages=options.stages)
    if aligned and made is not None:  # the interpreter compiles nothing
        _kept[key] = made
