"""Expand and compress of each kind of layer against its three matrix products, in one process of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smet import SparseLinear
from smet.mask import TileGrid, pack

from .figures import Figure
from .options import Options
from .spread import median, ratios

TOKENS = 2048


def measure(options: Options) -> dict[str, dict[str, list[float]]]:
    """Seconds of products and of kernels, round by round, for each shape of layer ``(out, in)``."""
    from pathlib import Path

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {shape: _layer(layer, options) for shape, layer in _layers(options, options.config(Path("unused")))}
    finally:
        torch.set_num_threads(threads)


def _layers(options: Options, config: Any) -> list[tuple[str, SparseLinear]]:
    hidden, inner = config.model.hidden_size, config.model.intermediate_size
    shapes = [(hidden, hidden), (inner, hidden), (hidden, inner)]
    generator = torch.Generator().manual_seed(0)
    made = []
    for out, inputs in dict.fromkeys(shapes):
        transposed = (out, inputs) == (hidden, inner) and hidden != inner  # as row-parallel layers are
        rows, cols = (inputs, out) if transposed else (out, inputs)
        grid = TileGrid(rows, cols, options.block)
        active = torch.zeros(grid.tiles, dtype=torch.bool)
        active[torch.randperm(grid.tiles, generator=generator)[: round(grid.tiles * options.density)]] = True
        values = torch.randn(int(active.sum()) * grid.tile_size).bfloat16()
        layer = SparseLinear(inputs, out, pack(active), values, options.block, transposed).to(options.device)
        made.append((f"{out} x {inputs}", layer))
    return made


def _layer(layer: SparseLinear, options: Options) -> dict[str, list[float]]:
    x = torch.randn(TOKENS, layer.in_features, device=options.device).bfloat16()
    grad = torch.randn(TOKENS, layer.out_features, device=options.device).bfloat16()
    weight = layer.dense_weight()
    dense = torch.randn(layer.grid.rows, layer.grid.cols, device=options.device).bfloat16()

    def products() -> Tensor:
        F.linear(x, weight)
        torch.mm(grad, weight)
        return x.t() @ grad if layer.transposed else grad.t() @ x

    def moves() -> Tensor:
        layer.dense_weight()
        layer.dense_weight()
        return layer.compress_gradient(dense)

    rounds = 3 if options.quick else 30
    seconds: dict[str, list[float]] = {"products": [], "moves": []}
    for _ in range(rounds):
        seconds["products"].append(_seconds(products, options))
        seconds["moves"].append(_seconds(moves, options))
    return seconds


def _seconds(action: Callable[[], Any], options: Options) -> float:
    if options.device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    action()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def figures(seconds: dict[str, dict[str, list[float]]]) -> list[Figure]:
    """The shape that costs most."""
    made = [
        median("expand_compress", ratios(found["moves"], found["products"]), f"layer {shape}, one thread")
        for shape, found in seconds.items()
    ]
    return [max(made, key=lambda figure: figure.value or 0.0)]
