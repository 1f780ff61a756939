"""Norms, gates, rotations and the loss in few passes over memory: one interface, the fastest version behind it.

On CPUs they are C++ (``cpu``), on GPUs what ``torch.compile`` makes of the formulas (``compiled``), and everywhere else
the formulas themselves (``plain``), which is also what remains where the fast version cannot be had. ``choose`` sets
which, for all models of this process; ``SMET_KERNELS=reference`` in the environment means ``plain``.
"""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from pretrain.models.fused import plain

FUSED, PLAIN = "fused", "plain"
CHOICES = (FUSED, PLAIN)
DTYPES = (torch.bfloat16, torch.float32)

log = logging.getLogger(__name__)
_chosen = {"steps": FUSED}


def choose(which: str) -> None:
    """Use the fast versions (``fused``, the default) or the formulas (``plain``) from now on."""
    if which not in CHOICES:
        raise ValueError(f"'{which}' is none of {', '.join(CHOICES)}")
    _chosen["steps"] = which


def steps(*operands: Tensor) -> ModuleType:
    """The version for these operands: ``plain``, or a module with the same functions."""
    first = operands[0]
    if torch.compiler.is_compiling():
        return plain
    if (
        _chosen["steps"] == PLAIN
        or any(x.dtype not in DTYPES or x.dtype != first.dtype or x.device != first.device for x in operands)
        or any(type(x) not in (Tensor, torch.nn.Parameter) for x in operands)
    ):
        return plain
    return _on(first.device.type)


@functools.cache
def _on(device: str) -> ModuleType:
    if device not in ("cpu", "cuda") or os.environ.get("SMET_KERNELS") == "reference":
        return plain
    try:
        return _cpu() if device == "cpu" else _cuda()
    except Exception as error:  # whatever a compiler dies of: the formulas do all the same
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once per host, not once per process
            lines = str(error).strip().splitlines()
            said = lines[0] if lines else type(error).__name__
            log.warning("norms, gates and the loss are plain torch on %s, because %s", device, said)
        return plain


def _cpu() -> ModuleType:
    from pretrain.models.fused import cpu

    cpu.library()
    return cpu


def _cuda() -> ModuleType:
    # A pool of processes that compile would outlive its use, in every rank; the formulas are few.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from pretrain.models.fused import compiled

    return compiled
