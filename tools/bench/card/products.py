"""Products over active tiles against cuBLAS on the whole matrix, by shape, tile, density and number of tokens."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smet import SparseLinear
from smet.compute.tiles import Tiles
from smet.kernels import tuning
from smet.mask import TileGrid, pack

from ...cores import cores
from ..spread import quartiles, ratios
from .clock import Action, seconds
from .settings import Case, Sizes

PRODUCTS = ("forward", "input gradient", "values gradient")
WRONG = 0.02
"""Relative errors above this are no rounding of bf16."""


def compile_ahead(sizes: Sizes) -> None:
    """Build the kernels of all tiles at once, each in a process of its own; later ones find them in Triton's cache."""
    if sizes.device != "cuda":
        return
    tiles = dict.fromkeys(tile for *_, tile, _ in sizes.cases)
    jobs = [(tile, which) for tile in tiles for which in range(len(PRODUCTS))]
    workers = min(len(jobs), cores())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, jobs))


def _compile(job: tuple[tuple[int, int], int]) -> None:
    tile, which = job
    sides = Sides((tile[0] * 8, tile[1] * 8, 1024, tile, 0.5), "cuda")
    list(sides.tiles.values())[which]()
    torch.cuda.synchronize()


def measure(sizes: Sizes, until: float, publish: Callable[[list[dict[str, Any]]], None]) -> dict[str, Any]:
    """Every case that fits before ``until`` (of ``time.monotonic``); ``publish`` is called with those done so far."""
    compile_ahead(sizes)
    rows: list[dict[str, Any]] = []
    left = list(sizes.cases)
    while left and time.monotonic() < until:
        rows.append(_case(left.pop(0), sizes))
        if len(rows) % 6 == 0:
            publish(rows)
    return {"rows": rows, "left_out": len(left), "configurations": dict(configurations())}


def configurations() -> Iterator[tuple[str, str]]:
    """What the kernels were tuned to."""
    for key, config in tuning.chosen.items():
        yield str(key), str(config)


class Sides:
    """One layer's products, by tiles and by cuBLAS (on a CPU torch's own), on the same inputs."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype | None = None):
        out, inputs, tokens, tile, density = case
        grid = TileGrid(out, inputs, tile)
        on = torch.zeros(grid.tiles, dtype=torch.bool)
        on[torch.randperm(grid.tiles)[: max(1, round(density * grid.tiles))]] = True
        # Triton's interpreter multiplies no bf16.
        dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float16)
        values = torch.randn(int(on.sum()) * grid.tile_size, dtype=dtype)
        self.layer = SparseLinear(inputs, out, pack(on), values, tile).to(device).requires_grad_(False)
        self.x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        self.grad = torch.randn(tokens, out, device=device, dtype=dtype)
        self.weight = self.layer.dense_weight().contiguous()
        backend, layer, x, grad, values = Tiles(), self.layer, self.x, self.grad, self.layer.values
        self.tiles: dict[str, Action] = {
            "forward": lambda: backend.forward(layer, x, values),
            "input gradient": lambda: backend.input_gradient(layer, grad, values),
            "values gradient": lambda: backend.values_gradient(layer, x, grad),
        }
        self.dense: dict[str, Action] = {
            "forward": lambda: F.linear(self.x, self.weight),
            "input gradient": lambda: self.grad @ self.weight,
            "values gradient": lambda: self.grad.t() @ self.x,
        }

    def errors(self) -> dict[str, float]:
        """Relative error of each product against fp32, in the Frobenius norm."""
        x, grad, weight = self.x.float(), self.grad.float(), self.weight.float()
        exact: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: x @ weight.t(),
            "input gradient": lambda: grad @ weight,
            "values gradient": lambda: self.layer.compress_gradient((grad.t() @ x).contiguous()),
        }
        found = {}
        for name, product in exact.items():
            expected, got = product(), self.tiles[name]().float()
            error = float((got - expected).norm() / expected.norm())
            found[name] = error if error == error else float("inf")
        return found


def _case(case: Case, sizes: Sizes) -> dict[str, Any]:
    sides = Sides(case, sizes.device)
    errors = sides.errors()
    actions = {("cuBLAS " + name): action for name, action in sides.dense.items()}
    actions |= {("tiles " + name): action for name, action in sides.tiles.items()}
    taken = seconds(actions, sizes.rounds, sizes.calls, sizes.device)
    out, inputs, tokens, tile, density = case
    for side in ("cuBLAS", "tiles"):
        each = [taken[f"{side} {name}"] for name in PRODUCTS]
        taken[f"{side} all"] = [sum(round_) for round_ in zip(*each, strict=True)]
    found = {}
    for name in (*PRODUCTS, "all"):
        values = ratios(taken[f"tiles {name}"], taken[f"cuBLAS {name}"])
        found[name] = {"median": median(values), "quartiles": list(quartiles(values))}
    flops = 2 * tokens * out * inputs * (sides.layer.density)
    return {
        "out": out, "in": inputs, "tokens": tokens, "tile": list(tile), "density": density, "ratios": found,
        "errors": errors, "right": max(errors.values()) < WRONG,
        "milliseconds": {name: 1e3 * median(times) for name, times in taken.items()},
        "tflops": {name: flops / median(taken[f"tiles {name}"]) / 1e12 for name in PRODUCTS},
        "cublas_tflops": {
            name: flops / sides.layer.density / median(taken[f"cuBLAS {name}"]) / 1e12 for name in PRODUCTS
        },
    }  # fmt: skip
