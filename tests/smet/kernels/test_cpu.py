"""The C++ kernels equal plain torch, in every build and with any number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smet.kernels import reference
from smet.kernels.cpu import CpuKernels
from smet.kernels.step import AdamStep
from smet.mask import TileGrid, unpack
from tests.smet.kernels.cases import (
    DENSITIES,
    DTYPES,
    GRIDS,
    adam_state,
    check_adamw,
    check_moves,
    check_refusals,
    mask,
    same_bits,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves_equal_the_reference(cpu_kernels: CpuKernels, dtype: torch.dtype) -> None:
    for grid, density in itertools.product(GRIDS, DENSITIES):
        check_moves(cpu_kernels, grid, density, dtype)


@settings(deadline=None, max_examples=150)
@given(
    tiles=st.tuples(st.integers(0, 40), st.integers(0, 20)),
    block=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_moves_equal_the_reference_for_any_shape(
    cpu_kernels: CpuKernels,
    tiles: tuple[int, int],
    block: tuple[int, int],
    density: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    grid = TileGrid(tiles[0] * block[0], tiles[1] * block[1], block)
    check_moves(cpu_kernels, grid, density, dtype, seed=seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [(1, 1), (1, 3), (2, 3)])
def test_threads_share_the_work_and_change_nothing(
    cpu_kernels: CpuKernels, threads: Callable[[int], None], block: tuple[int, int], dtype: torch.dtype
) -> None:
    grid = TileGrid(2_002, 6_009, block)  # enough for several threads, and an odd rest for the last
    bits, active = mask(grid.tiles, 0.25)
    matrix = torch.randint(-9, 9, (grid.rows, grid.cols), dtype=torch.int8).to(dtype)
    values = matrix.view(-1)[: active * grid.tile_size].clone()
    expanded = reference.expand(bits, values, grid)
    compressed = reference.compress(matrix, bits, grid, active)
    for number in (1, 2, 5):
        threads(number)
        assert torch.equal(cpu_kernels.expand(bits, values, grid), expanded)
        assert torch.equal(cpu_kernels.compress(matrix, bits, grid, active), compressed)


def test_tensors_that_are_not_contiguous_are_read_in_their_order(cpu_kernels: CpuKernels) -> None:
    grid = TileGrid(9, 11)
    bits, active = mask(99, 0.4)
    matrix, values = torch.randn(11, 9).t(), torch.randn(active, 2)[:, 1]
    spread = bits.repeat_interleave(2)[::2]
    assert torch.equal(cpu_kernels.expand(spread, values, grid), reference.expand(bits, values.clone(), grid))
    assert torch.equal(cpu_kernels.compress(matrix, spread, grid, active), matrix[unpack(bits, 99).view(9, 11)])


def test_a_mask_with_other_blocks_than_values_is_refused(cpu_kernels: CpuKernels) -> None:
    bits, active = mask(1000, 0.3)
    for wrong in (active - 1, active + 1):
        with pytest.raises(RuntimeError, match=f"mask holds {active} active tiles, the layer {wrong}"):
            cpu_kernels.expand(bits, torch.ones(wrong), TileGrid(1, 1000))
        with pytest.raises(RuntimeError, match=f"mask holds {active} active tiles, the layer {wrong}"):
            cpu_kernels.compress(torch.ones(1, 1000), bits, TileGrid(1, 1000), wrong)
    check_refusals(cpu_kernels)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("aged", [False, True])
@pytest.mark.parametrize("count", [0, 1, 31, 5000])
def test_adamw_is_within_rounding_of_the_reference(
    cpu_kernels: CpuKernels, count: int, aged: bool, grad_dtype: torch.dtype
) -> None:
    check_adamw(cpu_kernels, count, aged, grad_dtype)
    check_adamw(cpu_kernels, count, aged, grad_dtype, decay=0.0)


def test_adamw_without_ages_is_torch_adamw(cpu_kernels: CpuKernels) -> None:
    weight, grad = torch.randn(777), torch.randn(777)
    param = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.AdamW([param], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    exp_avg, exp_avg_sq = torch.zeros(777), torch.zeros(777)
    for step in range(1, 6):
        param.grad = grad * step
        theirs.step()
        step_size = torch.tensor([3e-3 / (1 - 0.9**step)])
        correction = torch.tensor([(1 - 0.95**step) ** 0.5])
        cpu_kernels.adamw(
            AdamStep(weight, grad * step, exp_avg, exp_avg_sq, None, step_size, correction, 0.9, 0.95, 1e-8, 3e-4)
        )
    torch.testing.assert_close(weight, param.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("aged", [False, True])
def test_adamw_of_an_element_depends_on_neither_its_place_nor_threads(
    cpu_kernels: CpuKernels, threads: Callable[[int], None], aged: bool
) -> None:
    """A weight that another partitioning puts elsewhere takes the same step, to the bit."""
    count, cut = 300_001, 1237
    whole = adam_state(count, aged)
    cpu_kernels.adamw(AdamStep(*whole, 0.9, 0.999, 1e-8, 1e-4))
    threads(3)
    again = adam_state(count, aged)
    cpu_kernels.adamw(AdamStep(*again, 0.9, 0.999, 1e-8, 1e-4))
    pieces = adam_state(count, aged)
    for part in (slice(0, cut), slice(cut, count)):
        vectors = [None if t is None else t[part] for t in pieces[:5]]
        cpu_kernels.adamw(AdamStep(*vectors, *pieces[5:], 0.9, 0.999, 1e-8, 1e-4))
    for at in (0, 2, 3):
        assert same_bits(whole[at], again[at])
        assert same_bits(whole[at], pieces[at])


def test_adamw_is_the_same_in_every_build(cpu_kernels: CpuKernels, request: pytest.FixtureRequest) -> None:
    portable = CpuKernels(request.config.cache.mkdir("smet-kernels"), ())
    for grad_dtype in (torch.float32, torch.bfloat16):
        ours, theirs = adam_state(4097, True, grad_dtype), adam_state(4097, True, grad_dtype)
        cpu_kernels.adamw(AdamStep(*ours, 0.9, 0.999, 1e-8, 1e-4))
        portable.adamw(AdamStep(*theirs, 0.9, 0.999, 1e-8, 1e-4))
        assert all(same_bits(ours[at], theirs[at]) for at in (0, 2, 3))


def test_a_birth_code_outside_the_tables_shows(cpu_kernels: CpuKernels) -> None:
    weight, grad, exp_avg, exp_avg_sq, _, step_size, correction = adam_state(3, aged=True)
    birth = torch.tensor([0, 3, 4], dtype=torch.uint8)
    cpu_kernels.adamw(
        AdamStep(weight, grad, exp_avg, exp_avg_sq, birth, step_size[:4], correction[:4], 0.9, 0.999, 1e-8, 0.0)
    )
    assert weight.isnan().tolist() == [False, False, True]


def test_fp64_and_scattered_state_are_updated_too(cpu_kernels: CpuKernels) -> None:
    ours = [t.double() if t.dtype == torch.float32 else t for t in adam_state(40, aged=True)]
    theirs = [t.clone() for t in ours]
    cpu_kernels.adamw(AdamStep(*ours, 0.9, 0.999, 1e-8, 1e-4))
    reference.adamw(AdamStep(*theirs, 0.9, 0.999, 1e-8, 1e-4))
    assert torch.equal(ours[0], theirs[0])

    wide = adam_state(40, aged=False)
    narrow = adam_state(40, aged=False)
    state = torch.stack([wide[0], wide[2], wide[3]], 1)
    cpu_kernels.adamw(AdamStep(state[:, 0], wide[1], state[:, 1], state[:, 2], None, *wide[5:], 0.9, 0.999, 1e-8, 0.0))
    reference.adamw(AdamStep(*narrow, 0.9, 0.999, 1e-8, 0.0))
    torch.testing.assert_close(state[:, 0], narrow[0])


def test_a_backward_that_needs_the_old_weights_notices_the_step(cpu_kernels: CpuKernels) -> None:
    weight = torch.randn(5, requires_grad=True)
    loss = (weight**2).sum()
    state = adam_state(5, aged=False)
    with torch.no_grad():
        cpu_kernels.adamw(AdamStep(weight, *state[1:], 0.9, 0.999, 1e-8, 0.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
