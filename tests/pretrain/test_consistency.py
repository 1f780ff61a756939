"""Replicas stay bit-identical over a run, and a planted difference is caught by name and rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pretrain.callbacks.base import Callback, Record
from pretrain.callbacks.consistency import ConsistencyCallback, checksum, differences
from pretrain.config import config_from_dict
from pretrain.errors import ReplicaError
from pretrain.startup import start
from pretrain.trainer import Trainer
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, write_corpus

SHAPE = {
    "vocab_size": 98,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
NORM = "model.layers.0.input_layernorm.weight"


class Plant(Callback):
    """Changes one replica on one rank after step 3, before the comparison."""

    name = "plant"

    def __init__(self, what: str, rank: int):
        self.what, self.rank = what, rank

    @torch.no_grad()
    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step != 3 or trainer.layout.rank != self.rank:
            return
        if self.what == "mask":
            layer = next(iter(trainer.topology.layers.values()))
            layer.mask[0] ^= 1
        elif self.what == "master":
            norm = trainer.engine.model.get_parameter(NORM)
            trainer.store.fragment(norm).master[:1] += 1
        else:
            dict(trainer.engine.model.named_parameters())[self.what].data.view(-1)[0] += 1


def trained(jobs: list[tuple[dict[str, Any], str, int]]) -> list[str]:
    """Error of each job, or an empty text."""
    import pretrain.run as program

    ordinary = program._callbacks
    errors = []
    for given, what, rank in jobs:
        config = config_from_dict(given)
        program._callbacks = lambda *a, w=what, r=rank: [Plant(w, r), *ordinary(*a)] if w else ordinary(*a)
        try:
            program.run(config, start(config))
            errors.append("")
        except ReplicaError as error:
            errors.append(str(error))
    return errors


def test_planted_differences_are_caught_on_every_rank(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")

    def job(name: str, **parallel: Any) -> dict[str, Any]:
        given = settings(
            corpus, tmp_path / name, train__steps=6, train__consistency_interval=3, train__precision="bf16",
            sparsity__mask_residency="replicated",
        )  # fmt: skip
        given["sparsity"]["density"] = 0.25
        return {**given, "model": SHAPE, "parallel": parallel}

    jobs = [
        (job("sound-tp", tensor=2, zero_stage=1, sequence=True), "", 0),
        (job("sound-pp", pipeline=2, zero_stage=1), "", 0),
        (job("norm", tensor=2, zero_stage=2), NORM, 3),
        (job("mask", tensor=2, zero_stage=2), "mask", 2),
        (job("master", tensor=2, zero_stage=3), "master", 1),
        (job("tied", pipeline=2, zero_stage=1), "model.embed_tokens.weight", 2),
    ]
    per_rank = run_ranks(trained, 4, jobs, timeout=240)
    assert all(errors == per_rank[0] for errors in per_rank), "every rank stops, with the same words"
    sound_tp, sound_pp, by_norm, by_mask, by_master, by_tied = per_rank[0]
    assert sound_tp == sound_pp == ""
    assert f"{NORM} on rank 3 differs from rank 0, 1, 2" in by_norm and "after step 3" in by_norm
    assert "q_proj.mask on rank" in by_mask and "2" in by_mask
    assert f"{NORM} (master weights 0 to 8) on rank 1 differs from rank 0" in by_master
    assert "model.embed_tokens.weight" in by_tied


def test_checksum_sees_every_bit_and_order() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for changed in (x.flip(0), x + 0.0, -x):
        assert (checksum(changed) == checksum(x)) == torch.equal(changed, x)
    flipped = x.clone().view(torch.int32)
    flipped[7] ^= 1
    assert checksum(flipped.view(torch.float32)) != checksum(x)
    assert checksum(x.bfloat16()) != checksum(x)


def test_majority_is_right() -> None:
    sums = [{("a", 0): (1, 1)}, {("a", 0): (1, 1)}, {("a", 0): (2, 1)}, {("b", 0): (9, 9)}]
    assert differences(sums) == ["a on rank 2 differs from rank 0, 1"]
    assert isinstance(ConsistencyCallback().state_dict(), dict)
