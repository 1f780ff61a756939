"""A tiny matrix: seconds per cell, two methods, and branches from one run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from tests.pretrain.runs import VOCABULARY, write_corpus

VARIANTS = {
    "no update": {"update": False},
    "prune only": {"frozen": True, "reference": "no update"},
    "naive": {"bias_correction": "global", "warmup_steps": 0, "reference": "no update"},
    "remedied": {"warmup_steps": 4, "reference": "no update"},
    "kept as it is": {"reference": "no update"},
}


def content(corpus: str, **changes: Any) -> dict[str, Any]:
    """A matrix of one model with 24 features."""
    made: dict[str, Any] = {
        "run": {
            "model": {
                "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 16,
            },
            "sparsity": {"update_interval": 6, "warmup_steps": 6, "stop_fraction": 0.9},
            "data": {"train": corpus, "validation": corpus, "seq_length": 16},
            "optimizer": {"lr": 0.01, "warmup_steps": 2},
            "train": {"steps": 20, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "device": "cpu"},
            "evaluation": {"samples": 8},
        },
        "sizes": {"tiny": {}},
        "methods": {"SET naive": {"method": "set"}, "SMET": {"method": "smet"}},
        "probe": {"samples": 8, "interval": 6, "offsets": [-2, 1, 5], "ages": [1, 2, 5]},
        "cells": [{"sizes": ["tiny"], "methods": ["SET naive", "SMET"], "densities": [0.25], "seeds": [0]}],
        "branches": {
            "samples": 8, "at": [6, 12], "evaluate": [1, 3, 4], "bases": {"SMET": {"method": "smet"}},
            "variants": VARIANTS,
        },
        "roles": {
            "naive": "SET naive", "remedied": "SMET",
            "branches": {"naive": "naive", "remedied": "remedied", "floor": "prune only"},
        },
    }  # fmt: skip
    return {**copy.deepcopy(made), **changes}


def write(folder: Path, **changes: Any) -> Path:
    """The matrix file in ``folder``, beside its corpus."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(write_corpus(folder / "corpus"), **changes)))
    return path
