"""Runs of the tiny family, each started from a run file that names it: the only line that is not in its folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pretrain.run
from pretrain.config import load_config
from pretrain.config.yaml_text import to_yaml
from tests.pretrain.runs import layout_of, outcome, settings
from tests.pretrain.test_checkpoint_layouts import read_back

FAMILY = "tests.families.tiny:FAMILY"
MODEL: dict[str, Any] = {
    "family": FAMILY, "words": 98, "features": 32, "inner": 48, "depth": 3, "heads": 4, "context": 32, "gated": [0, 2],
}  # fmt: skip
SPARSITY = {
    "density": 0.29, "update_interval": 4, "warmup_steps": 3, "stop_fraction": 1.0, "topology_ranges": 2,
    "exclude": ["read", "guess"],
}  # fmt: skip
STEPS = 11


def run_file(folder: Path, name: str, corpus: str, parallel: dict[str, Any], **changes: Any) -> str:
    """Write the run file of one layout, and return its path."""
    train = {"train__steps": STEPS, "train__micro_batch_size": 2}
    given = settings(corpus, folder / name, **{**train, "checkpoint__interval": 6, **changes})
    given["model"] = {**MODEL, **given["model"].pop("changed", {})} if "changed" in given["model"] else MODEL
    given["evaluation"] = {"interval": 5, "samples": 5}
    given["sparsity"], given["parallel"] = SPARSITY, parallel
    given["logging"] = {"interval": 1000, "traffic": True}
    path = folder / f"{name}.yaml"
    path.write_text(to_yaml(given))
    return str(path)


def train(paths: list[str]) -> list[dict[str, Any]]:
    """In every rank: train each run file to its end."""
    results = []
    for path in paths:
        config = load_config(path)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = pretrain.run.run(config, layout_of(config))
        results.append({**outcome(Path(config.train.output_dir)), "stage": trainer.layout.stage})
    return results


def go_on(jobs: list[tuple[str, str]]) -> list[tuple[list[str], float]]:
    """In every rank: load each (run file, checkpoint); vectors that differ from those stored, and the next loss."""
    found = []
    for number, (path, checkpoint) in enumerate(jobs):
        output = f"train.output_dir={path}-from-{number}"
        config = load_config(path, [f"checkpoint.resume={checkpoint}", "checkpoint.interval=0", output])
        with contextlib.redirect_stdout(io.StringIO()):
            found.append(read_back(config, Path(checkpoint)))
    return found
