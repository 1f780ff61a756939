"""Batches: the same samples whatever the layout, the micro-batch size, or where a run stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.data.corpus import open_corpus
from pretrain.data.loader import FILLER, BatchLoader
from tests.data.corpora import make_corpus

GLOBAL = 12


@pytest.fixture
def spec(tmp_path: Path) -> list[dict]:
    """A blend whose first corpus goes through its second epoch after 27 samples."""
    return [
        {"path": make_corpus(tmp_path / "a", 181), "weight": 2},
        {"path": make_corpus(tmp_path / "b", 401, first=500), "weight": 1},
    ]


def draw(spec: list[dict], dp_size: int, micro: int, steps: range) -> list[list[list[int]]]:
    """The samples of each step in global order: micro-batch by micro-batch, rank by rank."""
    accumulation = GLOBAL // (dp_size * micro)
    loaders = [
        BatchLoader(open_corpus(spec, 10, seed=7), micro, accumulation, rank, dp_size) for rank in range(dp_size)
    ]
    drawn = []
    for step in steps:
        per_rank = [loader.batches(step * GLOBAL) for loader in loaders]
        assert all(len(batches) == accumulation for batches in per_rank)
        assert all(batch.shape == (micro, 11) and batch.dtype == torch.int64 for batch in per_rank[0])
        drawn.append([row.tolist() for j in range(accumulation) for batches in per_rank for row in batches[j]])
    for loader in loaders:
        loader.close()
    return drawn


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 12), (1, 4), (2, 3), (2, 1), (3, 2), (4, 3), (12, 1)])
def test_samples_do_not_depend_on_the_layout(spec: list[dict], dp_size: int, micro: int) -> None:
    assert draw(spec, dp_size, micro, range(6)) == draw(spec, 1, 1, range(6))


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_stop_and_resume_at_another_layout_changes_nothing(spec: list[dict], stop: int) -> None:
    resumed = draw(spec, 2, 3, range(stop)) + draw(spec, 3, 1, range(stop, 6))
    assert resumed == draw(spec, 1, 12, range(6))


def test_reading_ahead_does_not_disturb_a_jump(spec: list[dict]) -> None:
    loader = BatchLoader(open_corpus(spec, 10, seed=7), 4, 3, 0, 1)
    first, jumped, back = loader.batches(0), loader.batches(5 * GLOBAL), loader.batches(0)
    loader.close()
    assert not torch.equal(first[0], jumped[0])
    assert all(torch.equal(a, b) for a, b in zip(first, back, strict=True))


@pytest.mark.parametrize("count", [1, 5, 12, 13, 24])
@pytest.mark.parametrize(("dp_size", "micro"), [(1, 4), (2, 3), (3, 1), (4, 4)])
def test_validation_set_is_the_same_at_every_layout(spec: list[dict], count: int, dp_size: int, micro: int) -> None:
    corpus = open_corpus(spec, 10, seed=7)
    per_rank = [list(BatchLoader(corpus, micro, 1, rank, dp_size).eval_batches(count)) for rank in range(dp_size)]
    assert len({len(batches) for batches in per_rank}) == 1
    batches = [batch for batches in per_rank for batch in batches]
    assert all(batch.shape == (micro, 11) for batch in batches)
    rows = [row.tolist() for batch in batches for row in batch]
    drawn = [row for row in rows if row != [FILLER] * 11]
    assert sorted(drawn) == sorted(corpus.sample(n).tolist() for n in range(count))
