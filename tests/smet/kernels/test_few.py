"""Products of a few tokens from mask and values are those with the dense weight, whatever the tile and the threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from smet import compute, sparsify
from smet.convert import Piece
from smet.kernels import compiler, few_cpu
from smet.linear import SparseLinear
from smet.mask import TileGrid, pack, unpack

pytestmark = pytest.mark.skipif(few_cpu.library() is None, reason="no C++ compiler")
NAME = "smet.compute.few:Few"
SHAPES = [
    ((1, 1), 40, 56), ((1, 1), 37, 43), ((1, 1), 3, 130), ((1, 4), 24, 36), ((2, 3), 24, 36), ((8, 16), 48, 64),
    ((16, 16), 32, 48), ((5, 1), 35, 7),
]  # fmt: skip


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layer_of(
    tile: tuple[int, int], rows: int, cols: int, transposed: bool, density: float, dtype: torch.dtype
) -> SparseLinear:
    grid = TileGrid(rows, cols, tile)
    chance = torch.Generator().manual_seed(rows * cols)
    active = torch.rand(grid.tiles, generator=chance) < density
    values = torch.randn(int(active.sum()) * grid.tile_size, generator=chance).to(dtype)
    inputs, outputs = (rows, cols) if transposed else (cols, rows)
    layer = SparseLinear(inputs, outputs, pack(active), values, tile, transposed)
    layer.compute = NAME
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("tile", "rows", "cols"), SHAPES)
@torch.no_grad()
def test_they_are_the_products_with_the_dense_weight(
    tile: tuple[int, int], rows: int, cols: int, transposed: bool, dtype: torch.dtype
) -> None:
    for density in (0.0, 0.05, 0.3, 0.9):
        layer = layer_of(tile, rows, cols, transposed, density, dtype)
        for tokens in (1, 2, 3, 4):
            x = torch.randn(1, tokens, layer.in_features).to(dtype)
            assert compute.choose(layer, x).name == "few"
            exact = (x.double() @ layer.dense_weight().double().t()).to(dtype)
            loose = {} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(layer(x), exact, **loose)


@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_the_bits_do_not_depend_on_threads_or_instructions_of_others(transposed: bool, threads: None) -> None:
    layer, x = layer_of((1, 1), 210, 300, transposed, 0.3, torch.float32), torch.randn(2, 210 if transposed else 300)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(layer(x))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_build_without_vector_instructions_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compiler.load(compiler.build(compiler.SOURCE.with_name("few.cpp"), machine=(), more=("-fopenmp",)))
    native = few_cpu.library()
    assert native is not None
    for name in ("smet_few_fp32", "smet_few_bf16"):
        getattr(plain, name).argtypes, getattr(plain, name).restype = getattr(native, name).argtypes, None
    for dtype in (torch.float32, torch.bfloat16):
        layer = layer_of((1, 1), 50, 70, False, 0.4, dtype)
        x = torch.randn(3, 70).to(dtype)
        with torch.no_grad():
            ours = layer(x)
            monkeypatch.setattr(few_cpu, "library", lambda: plain)
            torch.testing.assert_close(layer(x), ours)
            monkeypatch.undo()


def test_more_tokens_and_gradients_go_the_dense_way() -> None:
    layer = layer_of((1, 1), 20, 30, False, 0.4, torch.float32)
    assert compute.choose(layer, torch.zeros(5, 30)).name == "dense"
    assert compute.choose(layer, torch.zeros(1, 30, dtype=torch.float64)).name == "dense"
    x = torch.randn(2, 30)
    layer(x).pow(2).sum().backward()
    gradient, layer.values.grad = layer.values.grad, None
    layer.compute = "dense"
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(gradient, layer.values.grad)
    full = sparsify(nn.Sequential(nn.Linear(8, 8)), density=1.0, quiet=True).model[0]
    if isinstance(full, SparseLinear):
        full.compute = NAME
        assert compute.choose(full, torch.zeros(1, 8)).name == "dense"


def test_a_mask_that_moves_is_noticed() -> None:
    model = sparsify(nn.Sequential(nn.Linear(30, 20, bias=False)), density=0.3, quiet=True, piece=Piece()).model
    layer = model[0]
    assert isinstance(layer, SparseLinear) and layer.mask is not None
    layer.compute, x = NAME, torch.randn(1, 30)
    with torch.no_grad():
        layer(x)
        layer.mask.copy_(pack(unpack(layer.mask, 600).flip(0)))
        torch.testing.assert_close(layer(x), x @ layer.dense_weight().t(), atol=1e-5, rtol=1e-5)


def test_operands_that_do_not_fit_are_refused() -> None:
    layer = layer_of((1, 1), 20, 30, False, 0.4, torch.float32)
    assert layer.mask is not None
    starts = few_cpu.starts(unpack(layer.mask, 600), layer.grid)
    for x, bits in ((torch.zeros(1, 29), layer.mask), (torch.zeros(1, 30), layer.mask[:-1])):
        with pytest.raises(RuntimeError, match="expected a mask of 600 tiles"):
            few_cpu.product(bits, starts, layer.values, x, layer.grid, by_rows=True)
