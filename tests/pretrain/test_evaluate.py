"""Evaluation: the mean over exactly the samples asked for, at any layout; it changes nothing; updates come after."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config import config_from_dict
from pretrain.data.corpus import open_corpus
from pretrain.data.loader import FILLER, BatchLoader
from pretrain.evaluate import evaluate
from pretrain.layout import Layout
from pretrain.models.init import initialize
from pretrain.models.llama.model import LlamaForCausalLM
from pretrain.run import prepared
from pretrain.startup import start
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

COUNTS = (1, 3, 8, 9, 13)
ALONE = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)


class RowLoss:
    """An engine whose loss of a sample is known: its first token. Filler rows cost nothing."""

    def loss(self, tokens: Tensor) -> float:
        first = tokens[:, 0].double()
        return float(torch.where(first == FILLER, 0.0, first).mean())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("count", COUNTS)
def test_the_mean_is_over_exactly_the_samples(corpus: str, micro: int, count: int) -> None:
    """Also where the last batch is not full: neither its rows nor the batches are counted once too often."""
    data = open_corpus(corpus, 16, seed=0)
    loader = BatchLoader(data, micro, 1, 0, 1)
    found = evaluate(RowLoss(), loader, count, ALONE)  # type: ignore[arg-type]
    loader.close()
    expected = sum(int(data.sample(number)[0]) for number in range(count)) / count
    assert found["validation_loss"] == pytest.approx(expected, rel=1e-12)
    assert found["validation_perplexity"] == pytest.approx(math.exp(expected), rel=1e-12)


def test_a_diverged_model_has_a_loss_but_no_overflowing_perplexity(corpus: str) -> None:
    class Diverged:
        def loss(self, tokens: Tensor) -> float:
            return 1e4

    loader = BatchLoader(open_corpus(corpus, 16, seed=0), 2, 1, 0, 1)
    found = evaluate(Diverged(), loader, 2, ALONE)  # type: ignore[arg-type]
    loader.close()
    assert found["validation_loss"] == 1e4 and math.isfinite(found["validation_perplexity"])


def losses_before_training(jobs: list[dict[str, Any]]) -> list[list[float]]:
    """For each job, the losses of its untrained model over the first COUNTS samples. Runs in the ranks."""
    found = []
    for job in jobs:
        config = config_from_dict(job)
        with prepared(config, start(config)) as trainer:
            callback = next(callback for callback in trainer.callbacks if callback.name == "evaluation")
            loader = callback.loader  # type: ignore[attr-defined]
            found.append([evaluate(trainer.engine, loader, n, trainer.layout)["validation_loss"] for n in COUNTS])
    return found


def test_equal_at_1_2_and_4_ranks_and_any_micro_batch(corpus: str, tmp_path: Path) -> None:
    """And equal to a plain dense model of the same weights that sees one sample after another."""
    found: dict[tuple[int, int, int], list[float]] = {}
    for ranks, cases in ((1, [(1, 2), (8, 1), (4, 3)]), (2, [(1, 1), (4, 2), (2, 3)]), (4, [(1, 2), (2, 3)])):
        jobs = [
            settings(
                corpus,
                tmp_path / f"{ranks}-{micro}-{stage}",
                parallel__zero_stage=stage,
                train__micro_batch_size=micro,
                sparsity__density=1.0,
                sparsity__fan_in_init=False,
            )
            for micro, stage in cases
        ]
        by_rank = run_ranks(losses_before_training, ranks, jobs)
        assert all(losses == by_rank[0] for losses in by_rank), "every rank knows the same losses"
        found |= {(ranks, *case): losses for case, losses in zip(cases, by_rank[0], strict=True)}
    expected = reference_losses(settings(corpus, tmp_path / "reference"), corpus)
    for layout, losses in found.items():
        assert losses == pytest.approx(expected, rel=2e-6), layout


def reference_losses(job: dict[str, Any], corpus: str) -> list[float]:
    """Mean losses of the dense LLaMA over the first COUNTS samples, one sample at a time."""
    config = config_from_dict(job)
    model = LlamaForCausalLM(config.model)
    initialize(model, config.model, seed=config.train.seed)
    data = open_corpus(corpus, config.data.seq_length, config.data.seed)
    with torch.no_grad():
        each = [float(model.loss(torch.from_numpy(data.sample(n))[None])) for n in range(max(COUNTS))]
    return [sum(each[:count]) / count for count in COUNTS]


def test_it_changes_nothing_and_comes_before_the_update(corpus: str, tmp_path: Path) -> None:
    """Step 4 is due for both: its validation loss is that of a run whose topology never changes."""
    often = settings(corpus, tmp_path / "often", evaluation__interval=1, train__steps=9)
    never = settings(corpus, tmp_path / "never", evaluation__interval=0, train__steps=9)
    fixed = settings(corpus, tmp_path / "fixed", evaluation__interval=4, train__steps=9, sparsity__update_interval=100)
    first, second, third = run_ranks(train_all, 2, [often, never, fixed])[0]
    assert (len(first["validation"]), len(second["validation"])) == (9, 1), "and always after the last step"
    assert first["losses"] == second["losses"] and first["masks"] == second["masks"]
    assert first["validation"][-1] == second["validation"][-1]
    assert list(first["digests"]) == [4, 8] and third["digests"] == {}
    at_4 = validation_at(tmp_path / "fixed", 4)
    assert validation_at(tmp_path / "often", 4) == at_4
    assert validation_at(tmp_path / "often", 8) != validation_at(tmp_path / "fixed", 8), "by then, an update was made"


def validation_at(run: Path, step: int) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss: float = next(row["validation_loss"] for row in rows if row["step"] == step)
    return loss
