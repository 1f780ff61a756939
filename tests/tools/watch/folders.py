"""Run folders: made up, of any length, with what events and ranks a test asks for; and a tiny run that trains."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.config.yaml_text import to_yaml
from tests.pretrain.runs import settings, write_corpus
from tests.tools.texts import ROOT

LAYERS = [f"model.layers.{at}.{kind}" for at in range(3) for kind in ("self_attn.q_proj", "mlp.up_proj")]


def record(step: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    noise = random.Random(step * 7919 + seed).gauss(0, 0.05)
    return {
        "step": step, "loss": 2.5 + 6 * math.exp(-step / 120) + noise, "lr": 3e-3 * min(1, step / 50),
        "grad_norm": 1.2 + abs(noise), "tokens": step * 4096, "tokens_per_second": 12_000 + 4000 * noise,
        "step_seconds": 0.34, "skipped": False, **more,
    }  # fmt: skip


def update(step: int, number: int, **more: Any) -> dict[str, Any]:
    """A line of topology.jsonl."""
    moved = {name: 100 * (at + 1) // number for at, name in enumerate(LAYERS)}
    total = sum(moved.values())
    return {
        "step": step, "update": number, "fraction": 0.2, "pruned": total, "grown": total, "recycled": 3,
        "seconds": 0.1, "density": dict.fromkeys(LAYERS, 0.25), "moved": moved, **more,
    }  # fmt: skip


def add(path: Path, *rows: dict[str, Any]) -> None:
    """Add lines, as a run does."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def beat(folder: Path, rank: int, step: int, **more: Any) -> None:
    """A rank's heartbeat."""
    now = time.time()
    content = {
        "rank": rank, "host": f"node-{rank // 8:02d}", "pid": 100 + rank, "phase": "training", "step": step,
        "progress": step, "moved": now, "alive": now, "stuck": False, **more,
    }  # fmt: skip
    (folder / "heartbeat").mkdir(exist_ok=True)
    (folder / "heartbeat" / f"rank-{rank:05d}.json").write_text(json.dumps(content))


def make_run(
    folder: Path, steps: int, total: int, events: Sequence[dict[str, Any]] = (), ranks: int = 2, seed: int = 0
) -> Path:
    """A run at step ``steps`` of ``total``, with an update every 40 steps and a validation every 100."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"train: {{steps: {total}, output_dir: {json.dumps(str(folder))}, precision: bf16}}\n"
        "sparsity: {method: smet, density: 0.25, block: [1, 1], update_interval: 40}\n"
        "checkpoint: {interval: 100}\n"
    )
    validated = {n: {"validation_loss": 2.6 + 6 * math.exp(-n / 120)} for n in range(100, steps + 1, 100)}
    add(folder / "metrics.jsonl", *(record(n, seed, **validated.get(n, {})) for n in range(1, steps + 1)))
    add(folder / "topology.jsonl", *(update(n, n // 40) for n in range(40, steps + 1, 40)))
    add(folder / "events.jsonl", *({"time": time.time(), **event} for event in events))
    for rank in range(ranks):
        beat(folder, rank, steps)
    return folder


def start_run(folder: Path, **changes: Any) -> subprocess.Popen[bytes]:
    """Start a tiny run of one rank."""
    file = folder / "run.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "train__steps": 20_000,
        "checkpoint__interval": 20,
        "checkpoint__keep_last": 2,
        "operation__heartbeat": 0.5,
    }
    file.write_text(to_yaml(settings(write_corpus(folder / "corpus"), folder / "run", **{**given, **changes})))
    command = [sys.executable, "-m", "pretrain", str(file)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=(folder / "stderr").open("wb"))
