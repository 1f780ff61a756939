"""Small real runs for tests: a corpus, a config, and training inside spawned ranks."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import RunConfig, config_from_dict
from pretrain.data.writer import IndexedWriter
from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.run import run
from pretrain.startup import start

VOCABULARY = 97


def write_corpus(prefix: Path, tokens: int = 20_000, seed: int = 0) -> str:
    """A corpus of predictable noise: each token depends on the one before, so a model can learn it."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 7, tokens)
    stream = np.zeros(tokens, dtype=np.uint16)
    for i in range(1, tokens):
        stream[i] = (stream[i - 1] * 5 + noise[i]) % VOCABULARY
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for document in np.array_split(stream, 10):
            writer.add(document)
    return str(prefix)


def settings(corpus: str, output: Path, **changes: Any) -> dict[str, Any]:
    """A tiny LLaMA with grouped queries, odd widths, and a topology update every 4 steps."""
    given: dict[str, Any] = {
        "model": {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32,
        },
        "sparsity": {"density": 0.29, "update_interval": 4, "warmup_steps": 3, "stop_fraction": 1.0},
        "data": {"train": [{"path": corpus}], "validation": [{"path": corpus}], "seq_length": 16},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2},
        "train": {
            "steps": 14,
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "precision": "fp32",
            "output_dir": str(output),
            "device": "cpu",
        },
        "evaluation": {"interval": 5, "samples": 9},
        "checkpoint": {"interval": 0, "resume": "auto"},
        "logging": {"interval": 1000},
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        given[section] = {**given.get(section, {}), key: value}
    return given


def train_all(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train each job in turn inside the ranks that call this; returns what ``outcome`` returns."""
    return [train(job) for job in jobs]


_LAYOUTS: dict[tuple[int, int], Layout] = {}


def layout_of(config: RunConfig) -> Layout:
    """The layout of a config, joined once per process: every process group has threads of its own."""
    key = (config.parallel.tensor, config.parallel.pipeline)
    if key not in _LAYOUTS:
        _LAYOUTS[key] = start(config)
    return _LAYOUTS[key]


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end (or ``stop_at``), and return steps, losses, digests and the screen."""
    config: RunConfig = config_from_dict(job)
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        trainer = run(config, layout_of(config))
    masks = trainer.topology.mask_digest()
    return {**outcome(Path(config.train.output_dir)), "masks": masks, "screen": screen.getvalue()}


def outcome(folder: Path) -> dict[str, Any]:
    """Losses by step, topology digests by step, and validation losses of a run folder."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = folder / "topology.jsonl"
    topology = [json.loads(line) for line in updates.read_text().splitlines()] if updates.exists() else []
    return {
        "steps": [record["step"] for record in metrics],
        "losses": [record["loss"] for record in metrics],
        "validation": [record["validation_loss"] for record in metrics if "validation_loss" in record],
        "digests": {record["step"]: record["digest"] for record in topology},
        "norms": [record["grad_norm"] for record in metrics],
    }


def what_stops(one: dict[str, Any]) -> str:
    """Train a job; the message that ends it."""
    try:
        train(one)
    except ConfigError as error:
        return str(error)
    return "trained"
