"""What the benchmark ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from pretrain.checkpoint.manifest import git_revision
from smet import kernels
from smet.kernels import compiler


def describe(device: str) -> dict[str, Any]:
    """Processor, cores, versions, kernels and revision, as plain data."""
    import deepspeed

    return {
        "processor": compiler.model_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "kernels": kernels.describe(device),
        "revision": git_revision(),
    }


def load() -> float | None:
    """Processes that wanted a core over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
