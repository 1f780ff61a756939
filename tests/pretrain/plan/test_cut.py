"""The cut of a pipeline: the best one, the same at every start, and decoder layers for every stage while they last."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from pretrain.config import RunConfig, config_from_dict, load_config
from pretrain.plan import blocks_of, stages_of
from pretrain.plan.compute import block_costs
from pretrain.plan.cut import cut, describe, stage_bounds
from tests.pretrain.runs import settings

ROOT = Path(__file__).parents[3]
LAYERS, CHEAP, COSTLY = (2, 3, 4, 5, 8), 32, 4096
"""Decoder layers; vocabularies whose head costs less than a decoder layer, and more than four."""


def config_of(layers: int, vocabulary: int, tied: bool, stages: int = 1) -> RunConfig:
    given = settings("corpus", Path("run"))
    given["model"].update(num_hidden_layers=layers, vocab_size=vocabulary, tie_word_embeddings=tied)
    config = config_from_dict({**given, "parallel": {"zero_stage": 1}})
    config.parallel.pipeline = stages  # more stages than layers are refused only where settings are checked
    return config


@pytest.mark.parametrize("head", [CHEAP, COSTLY])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_no_cut_is_better(stages: int, layers: int, tied: bool, head: int) -> None:
    config = config_of(layers, head, tied, stages)
    blocks, bounds = blocks_of(config), stage_bounds(config)
    costs = block_costs(config, blocks)
    assert (costs[-1] > 4 * costs[1]) == (head == COSTLY) and (costs[-1] < costs[1]) == (head == CHEAP)

    def judged(inner: tuple[int, ...]) -> tuple[bool, int, int, tuple[int, ...]]:
        parts = [range(*ends) for ends in pairwise((0, *inner, len(blocks)))]
        prices = [sum(costs[number] for number in part) for part in parts]
        without = any(not any(blocks[number].is_layer for number in part) for part in parts)
        return without and layers >= stages, max(prices), sum(price**2 for price in prices), inner

    best = min(judged(inner) for inner in combinations(range(1, len(blocks)), stages - 1))
    assert tuple(bounds) == (0, *best[-1], len(blocks))
    held = [[block.name for block in part] for part in stages_of(config)]
    assert [name for part in held for name in part] == [block.name for block in blocks]
    if layers >= stages:
        assert all(any(".layers." in name for name in part) for part in held), held
        assert held[0][0] == "model.embed_tokens" and held[-1][-2:] == ["model.norm", "lm_head"]


def test_it_needs_a_block_per_stage() -> None:
    assert cut([0, 0, 0], [False, True, False], 3) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="3 blocks cannot be cut into 4 stages, expected 1 to 3"):
        cut([1, 1, 1], [False, True, False], 4)


def test_another_process_cuts_alike() -> None:
    """No clock, no device, no order of hashes: what one process cuts, every other one does."""
    program = (
        "from pretrain.config import load_config; from pretrain.plan.cut import stage_bounds;"
        "config = load_config('configs/70b.yaml', ['parallel.pipeline=8', 'parallel.zero_stage=1']);"
        "print(stage_bounds(config))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    config = load_config(ROOT / "configs" / "70b.yaml", ["parallel.pipeline=8", "parallel.zero_stage=1"])
    assert run.stdout == f"{stage_bounds(config)}\n"
    assert describe(config) == "stages of 10, 10, 10, 10, 10, 10, 10 and 10 decoder layers"


def test_a_deep_model_is_cut_in_a_moment() -> None:
    begin = time.perf_counter()
    bounds = cut([0, *[3] * 200, 0, 7], [False, *[True] * 200, False, False], 32)
    assert len(bounds) == 33 and time.perf_counter() - begin < 20
