"""What a release has stored, unpacked; and what today's program holds after loading it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.content import vectors_of
from pretrain.checkpoint.probe import probe_loss
from pretrain.config import config_from_dict
from pretrain.config.yaml_text import read_yaml
from pretrain.run import prepared
from pretrain.trainer import Trainer
from tests.pretrain.runs import layout_of, train

STORED = Path(__file__).parent / "0.1"
FACTS: dict[str, Any] = json.loads((STORED / "facts.json").read_text(encoding="utf-8"))
RUNS: dict[str, dict[str, Any]] = FACTS["runs"]
SAVED, STEPS = 9, 14
"""Step of the stored checkpoints, and of the runs' ends."""
CHECKPOINT = f"checkpoints/step-{SAVED:08d}"


def digest(tensor: Tensor) -> str:
    """As the release's ``make.py`` reckons it."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:32]


def unpack(folder: Path, *names: str) -> Path:
    """Put stored folders, and the corpus that its run files name, into ``folder``."""
    for name in names:
        with tarfile.open(STORED / f"{name}.tar.xz") as file:
            file.extractall(folder, filter="data")
    for file_name in ("corpus.bin", "corpus.idx"):
        shutil.copy(STORED / file_name, folder)
    return folder


def job(folder: Path, name: str, parallel: dict[str, Any] | None = None, stop_at: int = 0) -> dict[str, Any]:
    """The run file that a stored run folder holds; a run of its own at another layout, if one is given."""
    given = read_yaml(folder / name / "config.yaml")
    given["train"]["stop_at"] = stop_at
    if parallel is not None:
        given["parallel"] = parallel
        given["train"]["output_dir"] = f"{name}-{'-'.join(f'{key}{size}' for key, size in parallel.items())}"
        given["checkpoint"]["resume"] = f"{name}/{CHECKPOINT}"
    return given


def go_on_all(folder: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train each job from its checkpoint to its end; for ``run_ranks``."""
    return _each(train, folder, jobs)


def load_all(folder: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this rank holds after loading, by job; for ``run_ranks``."""
    return _each(_load, folder, jobs)


def _each(function: Callable[[dict[str, Any]], Any], folder: str, jobs: list[dict[str, Any]]) -> list[Any]:
    """Those without parallel layers first: once it has seen any, DeepSpeed asks every later engine for them."""
    os.chdir(folder)
    degrees = [(given["parallel"].get("tensor", 1), given["parallel"].get("pipeline", 1)) for given in jobs]
    order = sorted(range(len(jobs)), key=lambda number: degrees[number])
    found = {number: function(jobs[number]) for number in order}
    return [found[number] for number in range(len(jobs))]


def _load(given: dict[str, Any]) -> dict[str, Any]:
    config = config_from_dict(given)
    with contextlib.redirect_stdout(io.StringIO()) as screen, prepared(config, layout_of(config)) as trainer:
        return {**_held(trainer), "screen": screen.getvalue()}


def _held(trainer: Trainer) -> dict[str, Any]:
    vectors = vectors_of(trainer.engine, trainer.bank, trainer.layout)
    tokens = trainer.loader.corpus.sample(0).tolist()
    return {
        "pieces": {key: (v.start, v.numel(), v.local.detach().clone()) for key, v in vectors.items()},
        "step": trainer.step,
        "consumed_samples": trainer.consumed_samples,
        "topology": trainer.topology.state_dict(),
        "masks": trainer.topology.mask_digest(),
        "batch": [[digest(row) for row in rows] for rows in trainer.loader.batches(trainer.consumed_samples)],
        "place": (trainer.layout.dp_rank, trainer.layout.dp_size),
        "probe": {
            "tokens": tokens,
            "loss": probe_loss(trainer.engine, tokens, trainer.config.train.micro_batch_size),
        },
    }


def put_together(ranks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Length, dtype and digest of every logical vector, from what the ranks hold; ranges that two hold are equal."""
    whole: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    for rank in ranks:
        for name, (first, total, local) in rank["pieces"].items():
            vector = whole.setdefault(name, torch.zeros(total, dtype=local.dtype))
            here = written.setdefault(name, torch.zeros(total, dtype=torch.bool))[first : first + local.numel()]
            place = vector[first : first + local.numel()]
            assert torch.equal(place[here], local[here]), f"{name}: ranks hold different values"
            place.copy_(local)
            here.fill_(True)
    assert all(places.all() for places in written.values()), "ranks hold all of every vector"
    return {name: [v.numel(), str(v.dtype).removeprefix("torch."), digest(v)] for name, v in sorted(whole.items())}


def samples_in_order(ranks: list[dict[str, Any]]) -> list[str]:
    """Digests of the next step's samples, by their numbers, from the micro-batches of the data-parallel ranks."""
    found: dict[int, str] = {}
    for rank in ranks:
        place, size = rank["place"]
        for number, rows in enumerate(rank["batch"]):
            found |= {(number * size + place) * len(rows) + row: text for row, text in enumerate(rows)}
    return [found[number] for number in sorted(found)]
