"""Builds of the C++ kernels for the tests, kept in pytest's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from smet.kernels.compiler import NATIVE
from smet.kernels.cpu import CpuKernels

MACHINES = {"native": NATIVE, "without-vbmi2": (*NATIVE, "-mno-avx512vbmi2"), "portable": ()}


@pytest.fixture(scope="session", params=MACHINES)
def cpu_kernels(request: pytest.FixtureRequest) -> CpuKernels:
    """The C++ kernels for this processor, for one without the newest instructions, and for any."""
    folder = Path(request.config.cache.mkdir("smet-kernels"))
    return CpuKernels(folder, MACHINES[request.param])


@pytest.fixture
def threads() -> object:
    """``threads(n)`` sets torch's number of threads until the test is over."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
