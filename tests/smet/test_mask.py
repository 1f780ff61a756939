"""Packed masks and block grids, against numpy's own packing and plain slicing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smet.errors import ConfigError
from smet.mask import TileGrid, combined_digest, count_active, digest, pack, packed_bytes, unpack


@given(st.lists(st.booleans(), max_size=300))
def test_packing_is_numpys_little_endian_packing_at_any_length(flags: list[bool]) -> None:
    active = torch.tensor(flags, dtype=torch.bool)
    bits = pack(active)
    assert bits.dtype == torch.uint8
    assert bits.numel() == packed_bytes(len(flags)) == -(-len(flags) // 8)
    assert np.array_equal(bits.numpy(), np.packbits(np.array(flags, dtype=bool), bitorder="little"))
    assert torch.equal(unpack(bits, len(flags)), active)
    assert count_active(bits) == sum(flags)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_tiles_are_the_blocks_in_row_major_order(r: int, c: int, tall: int, wide: int) -> None:
    grid = TileGrid(r * tall, c * wide, (r, c))
    matrix = torch.arange(r * tall * c * wide).view(r * tall, c * wide)
    tiles = grid.to_tiles(matrix)
    assert tiles.shape == (grid.tiles, grid.tile_size) == (tall * wide, r * c)
    for index in range(grid.tiles):
        row, col = divmod(index, wide)
        tile = matrix[row * r : (row + 1) * r, col * c : (col + 1) * c]
        assert torch.equal(tiles[index], tile.reshape(-1))
    assert torch.equal(grid.from_tiles(tiles), matrix)


def test_tiles_of_a_transposed_matrix() -> None:
    matrix = torch.arange(24.0).view(4, 6)
    grid = TileGrid(6, 4, (3, 2))
    assert torch.equal(grid.from_tiles(grid.to_tiles(matrix.t())), matrix.t())


@pytest.mark.parametrize("block", [(5, 1), (1, 5), (5, 5), (7, 12)])
def test_a_block_that_does_not_divide_says_both_sizes(block: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"block is {block[0]} x {block[1]}.*does not divide a 6 x 12"):
        TileGrid(6, 12, block)


def test_a_digest_sees_every_bit() -> None:
    bits = pack(torch.arange(100) % 3 == 0)
    seen = {digest(bits)}
    for index in range(100):
        flipped = unpack(bits, 100)
        flipped[index] = ~flipped[index]
        seen.add(digest(pack(flipped)))
    assert len(seen) == 101
    assert digest(bits.clone()) == digest(bits)


def test_the_combined_digest_knows_layers_but_no_order() -> None:
    one, two = digest(torch.tensor([1], dtype=torch.uint8)), digest(torch.tensor([2], dtype=torch.uint8))
    assert combined_digest({"a": one, "b": two}) == combined_digest({"b": two, "a": one})
    assert combined_digest({"a": one, "b": two}) != combined_digest({"a": two, "b": one})
    assert combined_digest({"a": one}) != combined_digest({"b": one})


def test_a_grid_that_was_pickled_under_its_former_name_is_read() -> None:
    old = (
        pickle.dumps(TileGrid(6, 4, (3, 2)), protocol=0).replace(b"TileGrid", b"BlockGrid").replace(b"Vtile", b"Vblock")
    )
    assert b"BlockGrid" in old and b"Vblock" in old
    assert pickle.loads(old) == TileGrid(6, 4, (3, 2))
