"""The plan against real runs: bytes at rest within 1 % of memory.json, bytes sent within 2 % of those counted."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

import pretrain.run
from pretrain.callbacks.base import Callback, Record
from pretrain.callbacks.traffic import TrafficCallback
from pretrain.config import config_from_dict
from pretrain.plan import plan_rank, stages_of
from pretrain.startup import start
from pretrain.traffic import KINDS
from pretrain.trainer import Trainer
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, write_corpus

MODEL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SEQUENCE, STEADY, UPDATE = 32, 4, 3
"""Tokens per sequence; a step (counted from 0) where nothing special happens; one after an update."""


def job(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    given = settings(str(folder / "corpus"), folder / name, **changes)
    given["model"] = {**MODEL, **given["model"].pop("changed", {})}
    given["data"].pop("validation")
    given["evaluation"] = {}
    given["data"]["seq_length"] = SEQUENCE
    given["train"]["steps"] = 5
    given["sparsity"] = {"density": 0.25, "update_interval": 3, "stop_fraction": 1.0, **given["sparsity"]["changed"]}
    return given


def make(folder: Path, name: str, parallel: dict[str, Any], train: dict[str, Any] | None = None,
         sparsity: dict[str, Any] | None = None, model: dict[str, Any] | None = None,
         zero: dict[str, Any] | None = None, **deepspeed: Any) -> dict[str, Any]:  # fmt: skip
    made = job(folder, name, sparsity__changed=sparsity or {}, model__changed=model or {})
    made["parallel"] = parallel
    made["train"].update({"global_batch_size": 8, "micro_batch_size": 2, **(train or {})})
    made["deepspeed"] = {**({"zero_optimization": zero} if zero else {}), **deepspeed}
    return made


def packed(made: dict[str, Any]) -> dict[str, Any]:
    """The same with attention within documents."""
    return {**made, "data": {**made["data"], "reset_attention": True, "eos_id": 2}}


class Keep(Callback):
    """Holds on to the bytes of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, int]] = []

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.steps.append({kind: record[f"bytes_sent_{kind}"] for kind in KINDS})


def train_and_count(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In every rank: train each job; its bytes per step and the blocks of this rank's stage."""
    results = []
    callbacks = pretrain.run._callbacks
    for one in jobs:
        config = config_from_dict(one)
        layout = start(config)
        traffic, keep = TrafficCallback(), Keep()
        pretrain.run._callbacks = lambda *given, front=(traffic, keep): [*front, *callbacks(*given)]
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = pretrain.run.run(config, layout)
        names = {name for name, _ in trainer.engine.model.named_modules()}
        results.append({"steps": keep.steps, "stage": layout.stage, "modules": names})
    return results


def check(folder: Path, jobs: dict[str, dict[str, Any]], world: int) -> None:
    """Train all jobs on ``world`` ranks and compare every rank with its plan."""
    ranks = run_ranks(train_and_count, world, list(jobs.values()), timeout=400.0)
    problems = []
    for number, (name, one) in enumerate(jobs.items()):
        config = config_from_dict(one)
        measured = json.loads((folder / name / "memory.json").read_text())["measured_per_rank"]
        for rank in range(world):
            result = ranks[rank][number]
            stage = result["stage"]
            planned = stages_of(config)[stage]
            blocks = {block.name for block in planned}
            if config.model.tie_word_embeddings:
                blocks.discard("lm_head")  # it goes by the name of the embedding
            assert blocks <= result["modules"], f"{name}: another stage cut than planned"
            plan = plan_rank(config, world, stage)
            for part, kinds in measured[rank].items():
                for kind, actual in kinds.items():
                    problems += off(f"{name} rank {rank} {part} {kind}", plan.at_rest[part][kind], actual, 0.01)
            steady = result["steps"][STEADY]
            for kind, predicted in plan.sent.items():
                problems += off(f"{name} rank {rank} sends {kind}", predicted, steady[kind], 0.02)
            total = sum(count for kind, count in steady.items() if kind != "topology" or kind in plan.sent)
            problems += off(f"{name} rank {rank} sends in all", sum(plan.sent.values()), total, 0.02)
            # What growth by gradients sums up is sent in the step that ends in the update, the rest after it.
            updating = sum(result["steps"][step]["topology"] for step in (UPDATE - 1, UPDATE))
            always = 2 * plan.sent.get("topology", 0)
            problems += off(f"{name} rank {rank} update", plan.sent_per_update + always, updating, 0.02)
    assert not problems, "\n".join(problems)


def off(what: str, planned: int, actual: int, allowed: float) -> list[str]:
    if abs(planned - actual) <= allowed * actual:
        return []
    return [f"{what}: planned {planned}, actual {actual}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


BF16 = {"precision": "bf16"}
AGAIN = {"activation_checkpointing": True}


@pytest.mark.slow
def test_data_parallel(folder: Path) -> None:
    three = {"zero_stage": 3}
    tight = {"stage3_max_reuse_distance": 60_000, "stage3_max_live_parameters": 60_000,
             "stage3_prefetch_bucket_size": 8_000}  # fmt: skip
    nothing = dict.fromkeys(tight, 0)
    jobs = {
        "one": make(folder, "one", {"zero_stage": 1}),
        "two-bf16-1x4": make(folder, "two-bf16-1x4", {"zero_stage": 2}, BF16, {"block": [1, 4]}),
        "three-again": make(folder, "three-again", three, AGAIN),
        "three-tight": make(folder, "three-tight", three, BF16, zero=tight),
        "three-tight-again": make(folder, "three-tight-again", three, AGAIN, zero=tight),
        "three-nothing": make(folder, "three-nothing", three, {"micro_batch_size": 1}, zero=nothing),
        "three-nothing-again": make(folder, "three-nothing-again", three, AGAIN, zero=nothing),
        "replicated": make(folder, "replicated", {"zero_stage": 1}, None, {"mask_residency": "replicated"}),
        "kept": make(folder, "kept", {"zero_stage": 1}, None, {"weight_residency": "dense"}),
        "dense": make(folder, "dense", {"zero_stage": 2}, BF16, {"method": "dense", "density": 1.0,
                                                                 "update_interval": 0}),
        "two-sent-wide": make(folder, "two-sent-wide", {"zero_stage": 2}, BF16, communication_data_type="fp32"),
        "three-summed-wide": make(folder, "three-summed-wide", three, BF16, data_types={"grad_accum_dtype": "fp32"}),
        "gradient-growth": make(folder, "gradient-growth", {"zero_stage": 2}, None, {"growth": "gradient"}),
    }  # fmt: skip
    check(folder, jobs, 2)


@pytest.mark.slow
def test_what_criteria_need(folder: Path) -> None:
    longer = {"steps": 7}
    saliency = {"prune": "saliency", "block": [1, 4]}
    both = {"prune": "saliency", "growth": "momentum"}
    jobs = {
        "saliency": make(folder, "saliency", {"zero_stage": 3}, BF16, saliency),
        "momentum": make(folder, "momentum", {"zero_stage": 2}, longer, {"growth": "momentum"}),
        "both": make(folder, "both", {"zero_stage": 1}, {**longer, **BF16}, both),
    }
    check(folder, jobs, 2)


@pytest.mark.slow
def test_tensor_parallel(folder: Path) -> None:
    jobs = {
        "plain": make(folder, "plain", {"zero_stage": 1, "tensor": 2}),
        "split-again-1x4": make(folder, "split-again-1x4", {"zero_stage": 3, "tensor": 2, "sequence": True},
                                {**AGAIN, **BF16}, {"block": [1, 4]}),
        "again": make(folder, "again", {"zero_stage": 2, "tensor": 2}, AGAIN),
        "split": make(folder, "split", {"zero_stage": 2, "tensor": 2, "sequence": True}),
    }  # fmt: skip
    check(folder, jobs, 2)


@pytest.mark.slow
def test_pipeline(folder: Path) -> None:
    jobs = {
        "plain": make(folder, "plain", {"zero_stage": 1, "pipeline": 2}),
        "packed": packed(make(folder, "packed", {"zero_stage": 1, "pipeline": 2}, BF16)),
        "tied-bf16": make(folder, "tied-bf16", {"zero_stage": 1, "pipeline": 2}, {**BF16, **AGAIN}, {"block": [1, 4]},
                          {"tie_word_embeddings": True}),
    }  # fmt: skip
    check(folder, jobs, 2)


@pytest.mark.slow
def test_tensor_and_data_parallel(folder: Path) -> None:
    jobs = {
        f"zero-{stage}": make(folder, f"zero-{stage}", {"zero_stage": stage, "tensor": 2}, BF16 if stage == 3 else {})
        for stage in (1, 2, 3)
    }
    check(folder, jobs, 4)


@pytest.mark.slow
def test_pipeline_and_data_parallel(folder: Path) -> None:
    jobs = {"both": make(folder, "both", {"zero_stage": 1, "pipeline": 2}, {"micro_batch_size": 1})}
    check(folder, jobs, 4)


@pytest.mark.slow
def test_pipeline_and_tensor_parallel(folder: Path) -> None:
    jobs = {"split": make(folder, "split", {"zero_stage": 1, "pipeline": 2, "tensor": 2, "sequence": True}, AGAIN)}
    check(folder, jobs, 4)
