"""Buckets for gradients on their way, against those that DeepSpeed allocates."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pretrain.config import config_from_dict
from pretrain.plan import plan_rank
from pretrain.run import prepared
from tests.distributed import run_ranks
from tests.pretrain.plan.test_runs import BF16, make
from tests.pretrain.runs import layout_of, write_corpus

SIZE = 3_000_017
"""Elements of a bucket: many more than the model has, and a number that nothing else has."""


def bytes_of_buckets(jobs: list[dict[str, Any]]) -> list[int]:
    """In every rank: what DeepSpeed allocates for buckets until the first micro-batch of each job is done."""
    found, empty = [], torch.empty
    for one in jobs:
        config = config_from_dict(one)
        made: list[int] = []

        def counted(*shape: Any, made: list[int] = made, **more: Any) -> torch.Tensor:
            tensor = empty(*shape, **more)
            made.extend([tensor.nbytes] if tensor.numel() == SIZE else [])
            return tensor

        counting, quiet = mock.patch("torch.empty", counted), contextlib.redirect_stdout(io.StringIO())
        with counting, quiet, prepared(config, layout_of(config)) as trainer:
            trainer.topology.before_step()
            trainer.engine.train_step(trainer.loader.batches(0))
        found.append(sum(made))
    return found


def test_buckets_are_those_of_deepspeed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    train = {**BF16, "micro_batch_size": 4}  # one micro-batch a step
    cases: dict[str, tuple[int, dict[str, Any], dict[str, Any], int]] = {
        "one": (1, {}, {}, 2),
        "two": (2, {}, {}, 2),
        "two-overlapped": (2, {"overlap_comm": True}, {}, 4),
        "two-in-place": (2, {"contiguous_gradients": False}, {}, 0),
        "two-wide": (2, {}, {"communication_data_type": "fp32"}, 2),
        "three": (3, {}, {}, 2),
        "three-in-place": (3, {"contiguous_gradients": False}, {}, 0),
        "three-wide": (3, {}, {"communication_data_type": "fp32"}, 4),
    }
    jobs = [
        make(tmp_path, name, {"zero_stage": stage}, train, zero={"reduce_bucket_size": SIZE, **zero}, **more)
        for name, (stage, zero, more, _) in cases.items()
    ]
    for made in run_ranks(bytes_of_buckets, 2, jobs, timeout=240.0):
        assert dict(zip(cases, made, strict=True)) == {name: each * SIZE for name, (*_, each) in cases.items()}
    for job, (_, _, _, each) in zip(jobs, cases.values(), strict=True):
        plan = plan_rank(config_from_dict(job), 2, 0)
        # Beside them are gradients that are in no bucket or copied, of a model that has far fewer.
        assert 0 < plan.transients["gradients in flight"] - each * SIZE + 1 < SIZE
