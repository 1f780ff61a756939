"""The Triton kernels: in Triton's interpreter on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smet import kernels
from smet.mask import TileGrid
from tests.smet.kernels.cases import DTYPES, GRIDS, check_adamw, check_moves, check_refusals

INTERPRETED = """
import itertools, torch
from smet.kernels import triton
from smet.mask import TileGrid
from tests.smet.kernels.cases import *

def moves():
    for grid, dtype in itertools.product(GRIDS, (torch.bfloat16, torch.float32)):
        check_moves(triton, grid, 0.3, dtype)
    for dtype, density in itertools.product(DTYPES, DENSITIES):
        check_moves(triton, TileGrid(21, 100), density, dtype)
        check_moves(triton, TileGrid(7, 129, (1, 3)), density, dtype)
        check_moves(triton, TileGrid(90, 40, (3, 2)), density, dtype)

def adamw():
    for count, aged, dtype in itertools.product((0, 1, 2500), (False, True), (torch.float32, torch.bfloat16)):
        check_adamw(triton, count, aged, dtype)

def bounds():
    check_refusals(triton)
    bits, active = mask(500, 0.5)
    few = triton.expand(bits, torch.ones(active - 3), TileGrid(5, 100))
    assert few.count_nonzero() == active - 3
    assert triton.compress(torch.ones(5, 100), bits, TileGrid(5, 100), active - 3).tolist() == [1.0] * (active - 3)
"""


@pytest.mark.parametrize("check", ["moves", "adamw", "bounds"])
def test_in_the_interpreter(check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{INTERPRETED}\n{check}()"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


TYPES = {
    "bits": "*u8", "ends": "*i64", "counts": "*i32", "tiles": "i32", "active": "i32", "lanes": "i32", "width": "i32",
    "height": "i32", "across": "i32", "pieces": "i32",
    "weight": "*fp32", "exp_avg": "*fp32", "exp_avg_sq": "*fp32", "birth": "*u8", "step_size": "*fp32",
    "correction": "*fp32", "beta1_rest": "fp32", "beta2": "fp32", "beta2_rest": "fp32", "eps": "fp32", "keep": "fp32",
    "count": "i32", "values": "*i16", "matrix": "*i16", "grad": "*bf16",
}  # fmt: skip
CONSTANTS = {
    "_count": [{"BYTES": 256, "TILES": 16}, {"BYTES": 1, "TILES": 16}],
    "_expand": [
        {"lanes": 1, "BYTES": 256, "LANES": 1, "CHUNKED": False, "TALL": False},
        {"BYTES": 16, "LANES": 16, "CHUNKED": False, "TALL": False},
        {"BYTES": 1, "LANES": 256, "CHUNKED": True, "TALL": True},
    ],
    "_adamw": [{"AGED": True, "SIZE": 1024}, {"AGED": False, "SIZE": 1024}],
}
CONSTANTS["_compress"] = CONSTANTS["_expand"]


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kernel", CONSTANTS)
def test_compiles_for_gpus_that_are_not_here(
    kernel: str, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts more than the compiler does."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from smet.kernels import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton, kernel)
    for constants in CONSTANTS[kernel]:
        signature = {name: "constexpr" if name in constants else TYPES[name] for name in function.arg_names}
        source = ASTSource(fn=function, signature=signature, constexprs=constants)
        assert compile_kernel(source, target=GPUTarget("cuda", architecture, 32)).asm["cubin"]


@pytest.mark.gpu
def test_on_a_gpu_triton_is_chosen() -> None:
    assert kernels.describe().startswith("kernels on cuda: Triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_moves_on_a_gpu(dtype: torch.dtype) -> None:
    for grid, density in itertools.product([*GRIDS, TileGrid(1013, 2027)], (0.01, 0.3, 1.0)):
        check_moves(kernels, grid, density, dtype, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("aged", [False, True])
def test_adamw_on_a_gpu(aged: bool, grad_dtype: torch.dtype) -> None:
    for count in (1, 1000, 300_001):
        check_adamw(kernels.choose("cuda").kernels, count, aged, grad_dtype, device="cuda")


@pytest.mark.gpu
def test_refusals_on_a_gpu() -> None:
    check_refusals(kernels.choose("cuda").kernels, "cuda")
