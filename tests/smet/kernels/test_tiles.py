"""Products over active tiles: in Triton's interpreter on the CPU, compiled for GPUs, and on one where there is one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smet.kernels import tiles
from tests.smet.kernels.tile_cases import SHAPES, check_every_configuration, check_products

HALF = (torch.float16, torch.bfloat16)

INTERPRETED = """
import itertools, torch
from torch import nn
from smet import compute
from smet.bank import MaskBank
from smet.mask import TileGrid, pack
from tests.smet.kernels.tile_cases import *

def shapes():
    for shape, transposed in itertools.product(SHAPES, (False, True)):
        for dtype in (torch.float16, torch.float32):
            check_products(*shape, dtype, transposed)

def configurations():
    for block in ((32, 32), (16, 64)):
        check_every_configuration(block, torch.float16, True)

def index():
    # Dropped with the mask it was made from, kept as long as that lives.
    layer = layer_of(64, 96, (16, 16), 0.4, False, torch.float32)
    x, grad = torch.randn(20, 96), torch.randn(20, 64)
    tiles = compute.choose(layer, x)
    products(layer, x, grad)
    first = tiles.index(layer)
    products(layer, x, grad)
    assert tiles.index(layer) is first and 0 < first.nbytes < 2000
    moved = pack(torch.arange(24).flip(0) < layer.active)
    for write in (lambda: layer.mask.copy_(moved), lambda: MaskBank(nn.Sequential(layer)).write(layer, moved),
                  lambda: layer.load_state_dict({"mask": moved}, strict=False),
                  lambda: setattr(layer, "mask", moved.clone())):
        layer.mask = layer.mask.clone().bitwise_not_()
        layer.mask = pack(torch.arange(24) < layer.active)
        products(layer, x, grad)
        write()
        for found, expected in zip(products(layer, x, grad), exact(layer, x, grad)):
            assert error(found, expected) < 1e-6
    # A mask of fewer or more tiles than are stored: wrong numbers, but no memory of others.
    for wrong in (0, 24):
        layer.mask = pack(torch.arange(24) < wrong)
        products(layer, x, grad)

def sinks():
    # Growth by gradients sees the dense gradient; the values' own comes from it.
    layer, got = layer_of(64, 96, (16, 16), 0.4, False, torch.float32), []
    x, grad = torch.randn(20, 96), torch.randn(20, 64)
    layer.gradient_sink = lambda _, dense: got.append(dense)
    expected = exact(layer, x, grad)
    got.clear()
    found = products(layer, x, grad)
    assert torch.equal(got[0], grad.t() @ x)
    assert all(error(a, b) < 1e-6 for a, b in zip(found, expected))
"""


@pytest.mark.parametrize("check", ["shapes", "configurations", "index", "sinks"])
def test_in_the_interpreter(check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{INTERPRETED}\n{check}()"],
        env={
            **os.environ, "TRITON_INTERPRET": "1", "SMET_COMPUTE": "tiles", "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


TYPES = {"begin": "*i32", "inner": "*i32", "slots": "*i32", "group_row": "*i32", "group_first": "*i32"}
SIZES = ("tokens", "inputs", "outputs", "a_width", "b_width", "size")


def kernels_of(block: tuple[int, int], element: str, dtype: torch.dtype, tma: bool) -> Iterator[tuple[Any, ...]]:
    """Every kernel with every configuration for tiles of one size: function, signature, constants, options."""
    r, c = block
    for width, inner, along in ((r, c, True), (c, r, False)):
        for config in tiles.spread_configs(width, inner, dtype, tma):
            constants = {
                "W": width, "K": inner, "ALONG": along, "TOKENS": config.tokens, "STEP": config.step,
                "TMA": config.tma, "PRECISION": "ieee",
            }  # fmt: skip
            tile = (width, config.step) if along else (config.step, width)
            types = {"x": f"*{element}", "values": f"*{element}", "y": f"*{element}"}
            if config.tma:
                types["x"] = f"tensordesc<{element}[{config.tokens}, {config.step}]>"
                types["values"] = f"tensordesc<{element}[{tile[0]}, {tile[1]}]>"
            yield tiles._spread, types, constants, config
    for config in tiles.sample_configs(r, c, dtype, tma, splits=4):
        constants = {
            "R": r, "C": c, "GROUP": config.group, "STEP": config.step, "SPLITS": config.splits, "TMA": config.tma,
            "PRECISION": "ieee",
        }  # fmt: skip
        types = dict.fromkeys(("a", "b", "out"), f"*{element}") | ({"out": "*fp32"} if config.splits > 1 else {})
        if config.tma:
            types |= {name: f"tensordesc<{element}[{config.step}, {side}]>" for name, side in (("a", r), ("b", c))}
        yield tiles._sample, types, constants, config


@pytest.mark.parametrize(
    "architecture, block",
    [(90, (128, 128)), (90, (64, 64)), (90, (32, 32)), (90, (16, 128)), (80, (128, 64)), (100, (64, 128))],
)
def test_compiles_for_gpus_that_are_not_here(
    block: tuple[int, int], architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts more than the compiler does."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for function, types, constants, config in kernels_of(block, "bf16", torch.bfloat16, architecture >= 90):
        known = {**dict.fromkeys(SIZES, "i32"), **TYPES, **types}
        signature = {name: "constexpr" if name in constants else known[name] for name in function.arg_names}
        aligned = {
            (at,): [["tt.divisibility", 16]]
            for at, name in enumerate(function.arg_names)
            if name not in constants and name != "tokens" and "tensordesc" not in signature[name]
        }
        source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": config.warps, "num_stages": config.stages}
        made = compile_kernel(source, target=GPUTarget("cuda", architecture, 32), options=options)
        assert made.asm["cubin"]
        if architecture == 90 and min(block) >= 32:
            assert "wgmma" in made.asm["ptx"], (function.__name__, config)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_products_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_COMPUTE", "tiles")
    for shape, transposed in itertools.product(SHAPES, (False, True)):
        check_products(*shape, dtype, transposed, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), (64, 64), (32, 32), (16, 64), (128, 32)])
def test_every_configuration_on_a_gpu(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_COMPUTE", "tiles")
    check_every_configuration(block, torch.bfloat16, torch.cuda.get_device_capability()[0] >= 9, device="cuda")
