"""Which kernels are used: by device, by the environment, and when the fast ones cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smet import kernels
from smet.errors import ConfigError
from smet.kernels import compiler, cpu, reference
from smet.mask import TileGrid
from tests.smet.kernels.cases import check_moves


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("SMET_KERNELS", raising=False)
    kernels.choose.cache_clear()
    yield
    kernels.choose.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise compiler.BuildError("no C++ compiler found")

    monkeypatch.setattr(cpu, "CpuKernels", fail)


def test_the_fast_version_is_used_for_cpu_tensors() -> None:
    assert isinstance(kernels.choose("cpu").kernels, cpu.CpuKernels)
    assert kernels.describe("cpu").startswith("kernels on cpu: C++ (")
    check_moves(kernels, TileGrid(20, 10, (1, 2)), 0.3, torch.bfloat16)


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_KERNELS", "reference")
    assert kernels.choose("cpu").kernels is reference
    assert kernels.choose("cuda").kernels is reference
    assert kernels.describe("cpu").startswith("kernels on cpu: plain torch (SMET_KERNELS=reference)")


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_KERNELS", "nativ")
    with pytest.raises(ConfigError, match="SMET_KERNELS is 'nativ', expected one of .*did you mean 'native'"):
        kernels.choose("cpu")


def test_other_devices_get_plain_torch() -> None:
    assert kernels.choose("meta").kernels is reference
    assert "no fast version for meta" in kernels.describe("meta")


def test_native_without_a_compiler_is_an_error(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_KERNELS", "native")
    with pytest.raises(ConfigError, match="'native', but no C.. compiler found; mend that, or unset SMET_KERNELS"):
        kernels.choose("cpu")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_auto_without_a_compiler_says_so_once_per_host(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: str, lines: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with caplog.at_level(logging.WARNING, logger="smet.kernels"):
        for _ in range(3):
            check_moves(kernels, TileGrid(5, 10), 0.5, torch.float32)
    assert len(caplog.messages) == lines
    assert "no C++ compiler found" in kernels.describe("cpu")


def test_a_machine_without_compiler_trains_on_with_plain_torch(tmp_path: Path) -> None:
    program = (
        "import torch; from smet import kernels; from smet.mask import TileGrid, pack;"
        "bits = pack(torch.tensor([True, False, True]));"
        "dense = [kernels.expand(bits, torch.tensor([1.0, 2.0]), TileGrid(1, 3)).tolist() for _ in range(2)];"
        "print(dense, kernels.describe('cpu'))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "LOCAL_RANK")}
    environment |= {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[[1.0, 0.0, 2.0]], [[1.0, 0.0, 2.0]]] kernels on cpu: plain torch (no C++ compiler")
    warnings = [line for line in done.stderr.splitlines() if "slow kernels" in line]
    assert warnings == [
        "slow kernels on cpu: plain torch, because no C++ compiler found (looked for c++, g++, clang++)"
    ]


def test_triton_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    choice = kernels.choose("cuda")
    assert choice.kernels is reference
    assert "Triton cannot be imported" in choice.reason


def test_what_autograd_has_to_follow_goes_through_torch() -> None:
    bits = torch.tensor([0b101], dtype=torch.uint8)
    values = torch.tensor([2.0, 3.0], requires_grad=True)
    grid = TileGrid(1, 3)
    dense = kernels.expand(bits, values, grid)
    assert dense.tolist() == [[2.0, 0.0, 3.0]]
    kernels.compress(dense * torch.tensor([1.0, 10.0, 100.0]), bits, grid, 2).sum().backward()
    assert values.grad.tolist() == [1.0, 100.0]
    with torch.no_grad():
        assert not kernels.expand(bits, values, grid).requires_grad
