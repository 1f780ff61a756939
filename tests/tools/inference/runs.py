"""Small runs over text: what the tests of generation and evaluation read."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

import pretrain.callbacks.samples as samples
from pretrain.errors import DataError
from pretrain.generate import choose
from tests.pretrain.runs import settings, train
from tests.tools.texts import make_documents, write_jsonl
from tools.preprocess import main as preprocess

PROMPTS = ["the sparse weight", "", "caf\u00e9 x = 1"]
TOKENS = 9
"""Of a sample inside a run."""
MODEL = {
    "vocab_size": 512,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "sequence": {"zero_stage": 1, "tensor": 2, "sequence": True},
    "pipeline": {"zero_stage": 1, "pipeline": 2},
}
BF16 = ("zero2", "zero3", "pipeline")
TWINS = ("bf16-zero2", "fp32-zero3", "fp32-sequence", "fp32-pipeline")
"""Runs with ``evaluation.prompts`` that are there once more without (``-plain``)."""


def write_corpus(folder: Path, model: str) -> str:
    """A corpus of 200 documents and its validation split; returns their prefix."""
    text = write_jsonl(folder / "text.jsonl", make_documents(200, seed=3))
    prefix = str(folder / "text")
    arguments = ["--input", str(text), "--tokenizer", model, "--output", prefix, "--validation-fraction", "0.2"]
    assert preprocess([*arguments, "--workers", "1"]) == 0
    return prefix


def job(folder: Path, name: str, corpus: str, tokenizer: str, precision: str, layout: dict[str, Any]) -> dict[str, Any]:
    """A run of 6 steps, with a topology update after step 4, evaluated and saved after steps 3 and 6."""
    given = settings(
        f"{corpus}_train", folder / name, model__tie_word_embeddings=False, train__steps=6, train__precision=precision,
        train__micro_batch_size=2, checkpoint__interval=3, data__tokenizer=tokenizer, data__seq_length=32,
    )  # fmt: skip
    given["data"]["validation"] = [{"path": f"{corpus}_validation"}]
    return {**given, "model": MODEL, "parallel": layout, "evaluation": {"interval": 3, "samples": 11}}


def jobs(folder: Path, corpus: str, tokenizer: str) -> dict[str, dict[str, Any]]:
    """Every layout in fp32 and some in bf16, with ``evaluation.prompts``; some without; and a few of other settings."""

    def one(name: str, precision: str, layout: str, **more: Any) -> dict[str, Any]:
        made = job(folder, name, corpus, tokenizer, precision, LAYOUTS[layout])
        made["evaluation"] |= {"prompts": PROMPTS, "prompts_tokens": TOKENS, **more}
        return made

    cases = [*(("fp32", name) for name in LAYOUTS), *(("bf16", name) for name in BF16)]
    made = {f"{precision}-{name}": one(f"{precision}-{name}", precision, name) for precision, name in cases}
    made |= {f"{name}-plain": one(f"{name}-plain", *name.split("-"), prompts=[]) for name in TWINS}
    made["bf16-zero3"]["data"]["reset_attention"] = True
    drawn = {"prompts": PROMPTS[:1], "prompts_interval": 2, "prompts_temperature": 1.5}
    made |= {name: one(name, "fp32", "zero2", **drawn) for name in ("drawn", "disagreeing")}
    made["bf16-tiles"] = tiles = one("bf16-tiles", "bf16", "zero2", prompts=[])
    tiles["model"] = {**MODEL, "hidden_size": 32, "intermediate_size": 64}
    tiles["sparsity"] |= {"block": [8, 16], "density": 0.5, "permute": "both"}
    made["too-long"] = one("too-long", "fp32", "zero2", prompts=["a", "word " * 40])
    # DeepSpeed keeps what it was told of tensor parallelism: in one process, layouts without it come first.
    order = list(LAYOUTS.values())
    return dict(sorted(made.items(), key=lambda item: order.index(item[1]["parallel"])))


def train_each(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """In every rank: train each run, or say what stops it. In ``disagreeing``, the second rank would choose other
    tokens than the first."""
    found = {}
    for name, one in given.items():
        disagrees = name == "disagreeing" and dist.get_rank() == 1
        with patch.object(samples, "choose", _another if disagrees else choose):
            try:
                found[name] = train(one)
            except DataError as error:
                found[name] = {"error": str(error)}
    return found


def _another(*arguments: Any, **options: Any) -> int:
    return (choose(*arguments, **options) + 1) % 512


def quietly(main: Any, *arguments: Any) -> str:
    """What a tool prints on stdout; it has to end well."""
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
        assert main([str(argument) for argument in arguments]) == 0
    return screen.getvalue()
