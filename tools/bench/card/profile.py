"""What a step's time on the GPU goes into, by kernel."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

KINDS = {
    "tile products": ("_spread", "_sample"),
    "expand and compress": ("_expand", "_compress", "_count"),
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn_generated"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "cublas"),
    "optimizer": ("_adamw", "adam", "multi_tensor", "FusedAdam"),
    "copies": ("Memcpy", "Memset", "copy_kernel"),
}
"""Parts of the names of kernels; the first kind that fits counts, what fits none is elementwise and the like."""
REST = "all other kernels"


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one step on the GPU by kind of kernel, and of the step on the clock; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        seconds = getattr(event, "self_device_time_total", 0.0) / 1e6
        spent[_kind(event.key)] += seconds
    busy = sum(spent.values())
    return {**dict.fromkeys((*KINDS, REST), 0.0), **spent, "busy": busy, "clock": wall}


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part.lower() in lower for part in parts)), REST)
