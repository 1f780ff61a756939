"""Products over active tiles in C++: against fp64, with any number of threads, and with what they are not made for."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from smet import compute
from smet.compute.tiles import index_of
from smet.kernels import compiler, tiles_cpu
from smet.linear import SparseLinear
from smet.mask import TileGrid, pack
from tests.smet.kernels.tile_cases import check_products, error, exact, layer_of, products

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_kernels = pytest.mark.skipif(tiles_cpu.library() is None, reason="no AVX-512, or no C++ compiler")


HAS_MATRIX_UNIT = tiles_cpu.instructions() == "AMX"


@pytest.fixture(autouse=True, params=["with AMX", "without AMX"] if HAS_MATRIX_UNIT else [""])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SMET_COMPUTE", "tiles")
    tiles_cpu.use_matrix_unit(request.param != "without AMX")
    yield
    tiles_cpu.use_matrix_unit(True)


def cases(count: int, seed: int) -> list[tuple[int, int, tuple[int, int], int, float]]:
    """Rows, columns, tile, tokens and density; small and odd ones of each."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        block = 8 * rng.randint(1, 16), 16 * rng.randint(1, 8)
        if rng.random() < 0.4:
            block = rng.choice([(8, 16), (16, 16), (32, 32), (64, 64), (128, 128), (32, 64)])
        shape = [side * rng.randint(2, 5) for side in block]
        tokens = rng.choice([1, 2, 7, 31, 32, 33, 100, 191, 193, 1023, 1025, 2049])
        made.append((*shape, block, tokens, rng.choice([0.02, 0.3, 0.7, 1.1])))
    return made


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_those_of_the_dense_weight(dtype: torch.dtype, transposed: bool) -> None:
    for rows, cols, block, tokens, density in cases(25, seed=transposed):
        check_products(rows, cols, block, tokens, density, dtype, transposed)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    for rows, cols, block, tokens, _ in cases(8, seed=7):
        layer = layer_of(rows, cols, block, 0.4, False, dtype)
        x, grad = torch.randn(tokens, cols).to(dtype), torch.randn(tokens, rows).to(dtype)
        found = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(products(layer, x, grad))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@needs_kernels
def test_a_full_mask_is_the_dense_product() -> None:
    grid, values = TileGrid(64, 96, (16, 16)), torch.randn(64 * 96)
    x, grad = torch.randn(50, 96), torch.randn(50, 64)
    rows, columns = tiles_cpu.index(pack(torch.ones(24, dtype=torch.bool)), grid, 24)
    weight = grid.from_tiles(values.view(-1, 256))
    assert error(tiles_cpu.spread(x, values, rows, 64, 16, 16, True), x @ weight.t()) < 1e-6
    assert error(tiles_cpu.spread(grad, values, columns, 96, 16, 16, False), grad @ weight) < 1e-6
    dense = grid.to_tiles(grad.t() @ x).reshape(-1)
    assert error(tiles_cpu.sample(grad, x, rows, {}, 16, 16), dense) < 1e-6


@needs_kernels
def test_the_index_is_that_of_plain_torch() -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        tall, wide = (int(n) for n in torch.randint(1, 40, (2,), generator=rng))
        on = torch.rand(tall * wide, generator=rng) < 0.3
        grid, bits, active = TileGrid(8 * tall, 16 * wide, (8, 16)), pack(on), int(on.sum())
        for mine, other in zip(tiles_cpu.index(bits, grid, active), index_of(bits, grid, active), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@needs_kernels
def test_the_index_goes_with_its_mask_and_a_mask_that_does_not_fit_reads_no_memory_of_others() -> None:
    layer = layer_of(64, 96, (16, 16), 0.4, False, torch.float32)
    x, grad = torch.randn(40, 96), torch.randn(40, 64)
    backend = compute.choose(layer, x)
    products(layer, x, grad)
    first = backend.index(layer)
    products(layer, x, grad)
    assert backend.index(layer) is first
    layer.mask.copy_(pack(torch.arange(24).flip(0) < layer.active))
    for found, expected in zip(products(layer, x, grad), exact(layer, x, grad), strict=True):
        assert error(found, expected) < 1e-6
    for wrong in (0, 24):
        layer.mask = pack(torch.arange(24) < wrong)
        products(layer, x, grad)


@needs_kernels
def test_growth_by_gradients_sees_the_dense_gradient() -> None:
    layer, got = layer_of(64, 96, (16, 16), 0.4, False, torch.float32), []
    x, grad = torch.randn(40, 96), torch.randn(40, 64)
    layer.gradient_sink = lambda _, dense: got.append(dense)
    _, _, values = products(layer, x, grad)
    assert torch.equal(got[0], grad.t() @ x)
    assert torch.equal(values, layer.compress_gradient(got[0]))


@needs_kernels
def test_inputs_that_do_not_lie_row_by_row() -> None:
    layer = layer_of(64, 96, (16, 16), 0.4, False, torch.bfloat16)
    x, grad = torch.randn(96, 40).bfloat16().t(), torch.randn(1, 64).bfloat16().expand(40, 64)
    for found, expected in zip(products(layer, x, grad), exact(layer, x, grad), strict=True):
        assert error(found, expected) < 1.2e-2


@needs_kernels
def test_nan_and_infinity_stay_what_they_are_in_bf16() -> None:
    layer = layer_of(64, 96, (32, 32), 2.0, False, torch.bfloat16)
    x = torch.randn(40, 96).bfloat16()
    x[3, 40], x[5, 41] = float("nan"), float("inf")
    y = layer(x)
    assert y[3, 32:].isnan().all() and not y[5, 32:].isfinite().any() and y[[0, 1, 2, 4, 6]].isfinite().all()


@needs_kernels
def test_who_chooses_by_itself_takes_tiles_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMET_COMPUTE", "auto")
    for block, density, tokens, dtype, name in (
        ((16, 16), 0.25, 64, torch.float32, "tiles"),
        ((8, 16), 0.25, 64, torch.bfloat16, "dense" if compiler.can("amx_bf16") else "tiles"),
        ((16, 16), 0.25, 64, torch.bfloat16, "tiles" if tiles_cpu.instructions() != "AVX-512 BF16" else None),
        ((16, 16), 0.25, 63, torch.float32, "dense"),
        ((16, 16), 0.9, 64, torch.float32, "dense"),
        ((16, 8), 0.25, 64, torch.float32, "dense"),
        ((4, 16), 0.25, 64, torch.float32, "dense"),
        ((16, 16), 0.25, 64, torch.float16, "dense"),
        ((16, 16), 0.25, 64, torch.float64, "dense"),
    ):
        grid = TileGrid(256, 256, block)
        on = torch.arange(grid.tiles) < density * grid.tiles
        values = torch.zeros(int(on.sum()) * grid.tile_size, dtype=dtype)
        layer = SparseLinear(256, 256, pack(on), values, block)
        assert name is None or compute.choose(layer, torch.zeros(tokens, 256, dtype=dtype)).name == name, (
            block,
            density,
            tokens,
            dtype,
        )


@needs_kernels
def test_arguments_that_do_not_fit_are_refused() -> None:
    layer = layer_of(64, 96, (16, 16), 0.4, False, torch.float32)
    rows, _ = tiles_cpu.index(layer.mask, layer.grid, layer.active)
    values = layer.values.detach()
    with pytest.raises(RuntimeError, match="expected .tokens, inputs. and"):
        tiles_cpu.spread(torch.randn(40, 96), values[:-1], rows, 64, 16, 16, True)
    with pytest.raises(RuntimeError, match="expected one of .* got torch.float32 on cpu and torch.bfloat16 on cpu"):
        tiles_cpu.spread(torch.randn(40, 96), values.bfloat16(), rows, 64, 16, 16, True)
    with pytest.raises(RuntimeError, match="expected tiles of 16 x 16 in 65 x 96"):
        tiles_cpu.sample(torch.randn(40, 65), torch.randn(40, 96), rows, {}, 16, 16)
    with pytest.raises(RuntimeError, match="as many rows"):
        tiles_cpu.sample(torch.randn(41, 64), torch.randn(40, 96), rows, {}, 16, 16)
    with pytest.raises(RuntimeError, match="a mask of 24 tiles is 3 bytes, got 2"):
        tiles_cpu.index(layer.mask[:2], layer.grid, layer.active)


@needs_kernels
@pytest.mark.skipif(not HAS_MATRIX_UNIT, reason="no AMX")
def test_the_matrix_unit_takes_tiles_of_sixteens_and_leaves_its_registers_as_they_were() -> None:
    taken = {}
    x, grad = torch.randn(70, 96).bfloat16(), torch.randn(70, 96).bfloat16()
    for block in ((16, 16), (32, 48), (48, 32), (96, 16), (8, 16)):
        layer = layer_of(96, 96, block, 0.5, False, torch.bfloat16)
        own = products(layer, x, grad)
        dense = x @ x.t()  # torch's own products set the unit up for themselves, between ours
        tiles_cpu.use_matrix_unit(False)
        others = products(layer, x, grad)
        tiles_cpu.use_matrix_unit(True)
        assert torch.equal(dense, x @ x.t())
        assert all(error(a, b) < 1e-2 for a, b in zip(own, others, strict=True))
        taken[block] = not all(torch.equal(a, b) for a, b in zip(own, others, strict=True))
    assert tiles_cpu.instructions() in ("AMX", "AVX-512 BF16")
    assert taken[8, 16] is False, "whose sides are no sixteens"


@needs_kernels
@pytest.mark.parametrize("tokens", [31, 32, 33, 63, 64, 65, 1023, 1025, 1057])
@pytest.mark.parametrize("block", [(16, 16), (16, 48), (48, 16), (32, 32), (64, 16), (96, 96)], ids=str)
def test_every_remainder_of_tokens_and_strips(block: tuple[int, int], tokens: int) -> None:
    for transposed in (False, True):
        check_products(2 * block[0], 5 * block[1], block, tokens, 0.6, torch.bfloat16, transposed)
