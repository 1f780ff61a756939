"""At density 1 the whole program trains what torch's AdamW trains, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.build import LossModel
from pretrain.config import RunConfig, config_from_dict
from pretrain.data.corpus import open_corpus
from pretrain.layout import Layout
from pretrain.parallel.part import Builder
from pretrain.schedule import learning_rate
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

STEPS, BATCH = 20, 8


def job(corpus: str, folder: Path, stage: int) -> dict[str, Any]:
    given = settings(corpus, folder, train__steps=STEPS, evaluation__interval=0, optimizer__weight_decay=0.1)
    return {**given, "sparsity": {"method": "dense"}, "parallel": {"zero_stage": stage}}


def plain(config: RunConfig) -> list[float]:
    """Losses of the same dense model in a loop of plain torch."""
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    model = LossModel(Builder(config, alone).whole())
    matrices = [p for p in model.parameters() if p.numel() > config.model.hidden_size]
    vectors = [p for p in model.parameters() if p.numel() <= config.model.hidden_size]
    groups = [
        {"params": matrices, "weight_decay": config.optimizer.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.optimizer.beta1, config.optimizer.beta2))
    corpus = open_corpus(config.data.train[0].path, config.data.seq_length, config.data.seed)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.optimizer, STEPS)
        samples = [torch.as_tensor(corpus.sample(step * BATCH + row)).long() for row in range(BATCH)]
        loss = model(torch.stack(samples))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("ranks", [1, 2])
def test_density_one_is_dense_adamw(tmp_path: Path, ranks: int) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    jobs = [job(corpus, tmp_path / f"zero{stage}", stage) for stage in (1, 2, 3)]
    expected = plain(config_from_dict(jobs[0]))
    assert expected[-1] < expected[0] - 0.5, "the comparison is of a run that learns"
    for found in run_ranks(train_all, ranks, jobs, timeout=240)[0]:
        assert found["losses"] == pytest.approx(expected, rel=2e-5)
