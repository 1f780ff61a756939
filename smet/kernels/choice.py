"""Which version of the kernels works on a device; see ``smet.kernels``."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smet.errors import ConfigError, nearest
from smet.kernels import reference
from smet.kernels.step import AdamStep
from smet.mask import TileGrid

CHOICES = ("auto", "native", "reference")
log = logging.getLogger("smet.kernels")


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
