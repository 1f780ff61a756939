"""Where a pipeline is cut: a pure function of the settings, so that every start on every machine cuts alike.

A block costs its FLOPs. The dearest stage is as cheap as a contiguous cut can make it; among such cuts the stages are
as even as possible, and then the earlier ones, which hold more micro-batches in flight, are the smaller. As long as
there are enough decoder layers, no stage is without one. Runs, dry runs and the planner all ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from pretrain.config import RunConfig
from pretrain.plan.compute import block_costs
from pretrain.plan.sizes import blocks_of


def stage_bounds(config: RunConfig) -> list[int]:
    """First block of each pipeline stage, and the number of blocks at the end."""
    blocks = blocks_of(config)
    return cut(block_costs(config, blocks), [block.is_layer for block in blocks], config.parallel.pipeline)


def describe(config: RunConfig) -> str:
    """The cut in words, such as ``stages of 3, 3 and 2 decoder layers``."""
    layers = [block.is_layer for block in blocks_of(config)]
    bounds = stage_bounds(config)
    *most, last = (str(sum(layers[begin:end])) for begin, end in zip(bounds, bounds[1:], strict=False))
    return f"stages of {', '.join(most)} and {last} decoder layers"


def cut(costs: Sequence[int], layers: Sequence[bool], stages: int) -> list[int]:
    """The best cut of blocks into ``stages`` neighbouring parts, none of them empty.

    Args:
        costs: of each block, in any unit; whole numbers, whose sums every machine rounds alike.
        layers: whether each block is a decoder layer.

    Raises:
        ValueError: fewer blocks than stages.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{len(costs)} blocks cannot be cut into {stages} stages, expected 1 to {len(costs)}")
    return list(_cut(tuple(costs), tuple(layers), stages))


@lru_cache(maxsize=64)
def _cut(costs: tuple[int, ...], layers: tuple[bool, ...], stages: int) -> tuple[int, ...]:
    cost, layer = [0, *accumulate(costs)], [0, *accumulate(map(int, layers))]
    needs_layer = sum(layers) >= stages

    def may_be(begin: int, end: int) -> bool:
        return layer[end] > layer[begin] or not needs_layer

    dearest, _ = _best(len(costs), stages, may_be, lambda begin, end: cost[end] - cost[begin], max)
    _, bounds = _best(
        len(costs), stages, lambda begin, end: may_be(begin, end) and cost[end] - cost[begin] <= dearest,
        lambda begin, end: (cost[end] - cost[begin]) ** 2, lambda one, rest: one + rest,
    )  # fmt: skip
    return bounds


def _best(
    count: int, stages: int, may_be: Callable[[int, int], bool], price: Callable[[int, int], int],
    together: Callable[[int, int], int],
) -> tuple[int, tuple[int, ...]]:  # fmt: skip
    """(price, bounds) of the cheapest cut whose parts all ``may_be``; of equal ones the first in order of bounds.

    Args:
        price: of the part from one block to before another.
        together: price of a part and of all behind it.
    """
    found: list[Any] = [None] * count + [(0, (count,))]  # from each block on, into one part less than below
    for remaining in range(1, stages + 1):
        found = [
            min(
                (
                    (together(price(begin, end), found[end][0]), (begin, *found[end][1]))
                    for end in range(begin + 1, count + 1)
                    if found[end] is not None and may_be(begin, end)
                ),
                default=None,
            )
            for begin in range(count if remaining < stages else 1)
        ] + [None]
    best: tuple[int, tuple[int, ...]] = found[0]
    return best
