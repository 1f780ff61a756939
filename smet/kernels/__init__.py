"""Expand, compress and Adam: one small interface, the fastest version for the device behind it.

CPU tensors go to C++ (``cpu``), GPU tensors to Triton (``triton``), all others to plain torch
(``reference``), which is also what remains where the fast version cannot be had. ``SMET_KERNELS``
in the environment forces a choice:

    auto        the default: as above
    native      the same, but an error in place of plain torch
    reference   plain torch everywhere
"""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smet.errors import ConfigError, nearest
from smet.kernels import checks, reference
from smet.kernels.step import AdamStep
from smet.mask import TileGrid

__all__ = ["AdamStep", "adamw", "compress", "describe", "expand"]

CHOICES = ("auto", "native", "reference")
log = logging.getLogger(__name__)


class Kernels(Protocol):
    """What every version offers; ``smet.kernels.reference`` says what the functions do."""

    def expand(self, bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor: ...

    def compress(self, matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor: ...

    def adamw(self, step: AdamStep) -> None: ...


class Choice(NamedTuple):
    """A version, and one line that says which it is and why."""

    kernels: Kernels
    reason: str


@functools.cache
def choose(device: str) -> Choice:
    """The version for tensors on ``device`` ("cpu", "cuda", ...), built on the first call.

    Raises:
        ConfigError: ``SMET_KERNELS`` is none of ``CHOICES``, or asks for what cannot be had.
    """
    wanted = os.environ.get("SMET_KERNELS") or "auto"
    if wanted not in CHOICES:
        raise ConfigError(f"SMET_KERNELS is '{wanted}', expected one of {', '.join(CHOICES)}{nearest(wanted, CHOICES)}")
    if wanted == "reference":
        return Choice(reference, "plain torch (SMET_KERNELS=reference)")
    if device not in FAST:
        return Choice(reference, f"plain torch (no fast version for {device})")
    choice = FAST[device]()
    if choice.kernels is reference:
        if wanted == "native":
            raise ConfigError(f"SMET_KERNELS is 'native', but {choice.reason}; mend that, or unset SMET_KERNELS")
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once per host, not once per process
            log.warning("slow kernels on %s: plain torch, because %s", device, choice.reason)
        return Choice(reference, f"plain torch ({choice.reason})")
    return choice


def _cpu() -> Choice:
    from smet.kernels import compiler, cpu

    try:
        kernels = cpu.CpuKernels()
        return Choice(kernels, f"C++ ({kernels.level}; {compiler.compiler()[1]})")
    except compiler.BuildError as error:
        return Choice(reference, str(error))


def _cuda() -> Choice:
    try:
        import triton as installed

        from smet.kernels import triton
    except ImportError as error:
        return Choice(reference, f"Triton cannot be imported ({error})")
    return Choice(triton, f"Triton {installed.__version__}")


FAST = {"cpu": _cpu, "cuda": _cuda}


def describe(device: str | None = None) -> str:
    """One line that says which kernels are in use, and why.

    Args:
        device: a device type; default "cuda" if there is one, else "cpu".
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return f"kernels on {device}: {choose(device).reason}{threads}"


def expand(bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
    """Scatter active values into a dense matrix ``(rows, cols)``; see ``reference.expand``.

    Raises:
        ConfigError: an argument is no plain tensor; see ``checks.plain``.
    """
    checks.plain("mask", bits)
    checks.plain("values", values)
    if values.requires_grad and torch.is_grad_enabled():  # the fast versions leave no trace for autograd
        return reference.expand(bits, values, grid)
    return choose(values.device.type).kernels.expand(bits, values, grid)


def compress(matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
    """Gather the active tiles of ``matrix`` ``(rows, cols)``; see ``reference.compress``.

    Raises:
        ConfigError: an argument is no plain tensor; see ``checks.plain``.
    """
    checks.plain("mask", bits)
    checks.plain("dense gradient", matrix)
    if matrix.requires_grad and torch.is_grad_enabled():
        return reference.compress(matrix, bits, grid, active)
    return choose(matrix.device.type).kernels.compress(matrix, bits, grid, active)


def adamw(step: AdamStep) -> None:
    """One AdamW step in place over flat vectors, with per-age step sizes.

    Raises:
        ConfigError, RuntimeError: arguments that do not fit; see ``checks.adamw``.
    """
    checks.adamw(step)
    choose(step.weight.device.type).kernels.adamw(step)
