"""Dense gradients summed over ranks, layer by layer, each rank holding its own part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from smet.growth import Gradients
from smet.linear import SparseLinear, sparse_layers
from smet.seeds import generator
from tests.distributed import run_ranks
from tests.smet.drawn import random_mask

BATCHES = 4
SHAPES = {"0": (12, 20, (1, 1)), "1": (20, 12, (2, 3)), "2": (6, 7, (1, 1))}
"""Layer to (outputs, inputs, block); 42 blocks of the last are no multiple of 4 ranks."""


def layers() -> dict[str, SparseLinear]:
    made = torch.nn.ModuleDict()
    for name, (rows, cols, block) in SHAPES.items():
        blocks, size = rows * cols // (block[0] * block[1]), block[0] * block[1]
        bits = random_mask(blocks, blocks // 3, generator(0, name))
        made[name] = SparseLinear(cols, rows, bits, torch.zeros(blocks // 3 * size), block)
    return sparse_layers(made)


def micro_batch(name: str, number: int) -> torch.Tensor:
    rows, cols, _ = SHAPES[name]
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(100 * number + int(name)))


def collect() -> dict[str, Any]:
    """Scores of all layers from ``BATCHES`` micro-batches, dealt out to the ranks."""
    ranks, rank, own = dist.get_world_size(), dist.get_rank(), layers()
    gradients = Gradients(["gradient"], dist.group.WORLD if ranks > 1 else None)
    gradients.collect(own.values(), updates=True)
    for number in range(BATCHES // ranks):
        for name, layer in own.items():
            assert layer.gradient_sink is not None
            layer.gradient_sink(layer, micro_batch(name, number * ranks + rank))
    held = gradients.bytes_held
    scores = {name: gradients.given(name, layer)["gradient"] for name, layer in own.items()}
    left = gradients.bytes_held
    gradients.stop(own.values())
    return {"held": held, "left": left, "scores": scores}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_scores_are_those_of_the_sum_and_each_rank_holds_its_part(ranks: int) -> None:
    for found in run_ranks(collect, ranks):
        dense = 0
        for name, layer in layers().items():
            whole = sum(micro_batch(name, number) for number in range(BATCHES))
            expected = layer.grid.to_tiles(whole).abs().sum(1)
            torch.testing.assert_close(found["scores"][name], expected)
            dense += 4 * -(-layer.grid.tiles // ranks) * layer.grid.tile_size
        assert (found["held"], found["left"]) == (dense, 0)


def test_without_collecting_there_are_no_scores() -> None:
    with pytest.raises(RuntimeError, match="needs before_step"):
        Gradients(["gradient"]).given("0", layers()["0"])
