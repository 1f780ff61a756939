"""Products over active tiles against the same products in fp64, through layers and through the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from smet import compute
from smet.kernels import tiles, tuning
from smet.linear import SparseLinear
from smet.mask import TileGrid, pack

SHAPES = [
    (128, 256, (64, 64), 100, 0.4), (256, 128, (32, 64), 64, 0.5), (128, 256, (128, 32), 70, 0.6),
    (64, 96, (16, 16), 33, 0.3), (256, 256, (128, 128), 130, 0.5), (96, 64, (32, 16), 1, 0.7),
]  # fmt: skip
"""Rows, columns, tile, tokens, density: tall and wide tiles, odd numbers of tokens, one token."""
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def layer_of(
    rows: int, cols: int, block: tuple[int, int], density: float, transposed: bool, dtype: torch.dtype,
    device: str = "cpu", seed: int = 0,
) -> SparseLinear:  # fmt: skip
    """A layer whose mask has a row and a column of tiles without any, and a full row where there is room."""
    random = torch.Generator().manual_seed(seed)
    grid = TileGrid(rows, cols, block)
    on = torch.rand(rows // block[0], cols // block[1], generator=random) < density
    on[-1] = True
    on[0] = False
    on[:, 0] = False
    values = torch.randn(int(on.sum()) * grid.tile_size, generator=random).to(dtype)
    out, inputs = (cols, rows) if transposed else (rows, cols)
    return SparseLinear(inputs, out, pack(on.flatten()), values, block, transposed).to(device)


def products(layer: SparseLinear, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and of the values, through autograd."""
    x, layer.values.grad = x.clone().requires_grad_(), None
    y = layer(x)
    y.backward(grad)
    assert x.grad is not None and layer.values.grad is not None
    return y.detach(), x.grad, layer.values.grad


def exact(layer: SparseLinear, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in fp64 with the dense weight."""
    weight, x, grad = layer.dense_weight().double(), x.double().flatten(0, -2), grad.double().flatten(0, -2)
    dense = x.t() @ grad if layer.transposed else grad.t() @ x
    return x @ weight.t(), grad @ weight, layer.compress_gradient(dense.contiguous())


def error(found: Tensor, expected: Tensor) -> float:
    """Relative in the Frobenius norm; infinite for anything not finite."""
    found = found.double().view(expected.shape)
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def check_products(
    rows: int, cols: int, block: tuple[int, int], tokens: int, density: float, dtype: torch.dtype,
    transposed: bool, device: str = "cpu",
) -> None:  # fmt: skip
    """All three products of a layer that the tiles serve are within rounding of fp64, and equal when done again."""
    layer = layer_of(rows, cols, block, density, transposed, dtype, device)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, layer.in_features, generator=random).to(device, dtype)
    grad = torch.randn(tokens, layer.out_features, generator=random).to(device, dtype)
    chosen = compute.choose(layer, x)
    assert chosen.name == "tiles", "SMET_COMPUTE=tiles is to be set"
    assert chosen.flops(layer, tokens) == 6 * tokens * layer.values.numel()
    got, again = products(layer, x, grad), products(layer, x, grad)
    for name, found, twice, expected in zip(("y", "dx", "dvalues"), got, again, exact(layer, x, grad), strict=True):
        assert found.dtype == dtype and torch.equal(found, twice)
        assert error(found, expected) < BOUNDS[dtype], (name, block, tokens, dtype, transposed, error(found, expected))


def check_every_configuration(block: tuple[int, int], dtype: torch.dtype, tma: bool, device: str = "cpu") -> None:
    """Each configuration that may be chosen, on its own."""
    layer = layer_of(256, 384, block, 0.4, False, dtype, device)
    x, grad = (torch.randn(150, size, device=device).to(dtype) for size in (384, 256))
    expected = exact(layer, x, grad)
    r, c = block
    cases = [
        (tiles.spread_configs(r, c, dtype, tma), "spread_configs", 0),
        (tiles.spread_configs(c, r, dtype, tma), "spread_configs", 1),
        (tiles.sample_configs(r, c, dtype, tma, splits=4), "sample_configs", 2),
    ]
    for configs, name, which in cases:
        for config in configs:
            original = getattr(tiles, name)
            setattr(tiles, name, lambda *_, config=config: [config])
            tuning.chosen.clear()
            try:
                found = products(layer, x, grad)[which]
            finally:
                setattr(tiles, name, original)
                tuning.chosen.clear()
            assert error(found, expected[which]) < BOUNDS[dtype], (config, block, dtype, error(found, expected[which]))
