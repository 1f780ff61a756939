"""The most memory that this process has held so far."""

from __future__ import annotations

import resource
import sys

import torch

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the system counts resident memory."""


def peak_memory(device: torch.device) -> int:
    """Bytes at the fullest moment of this process: allocated by torch on a GPU, else resident in host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_peak()


def resident_peak() -> int:
    """Bytes of host memory at the fullest moment of this process, libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
