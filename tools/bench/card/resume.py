"""A run that is stopped and goes on is the run that was never stopped, to the bit, with tiles on the GPU too."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.content import vectors_of
from pretrain.config import RunConfig
from pretrain.run import run

from .. import ranks
from ..ranks import Rank
from ..runs import corpus
from .settings import Setting

STEPS, STOP = 12, 6


def measure(setting: Setting) -> dict[str, Any]:
    """Digests of the state after the last step and losses, of both runs; each in a process of its own."""
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for where results must repeat
    try:
        with tempfile.TemporaryDirectory(prefix="resume-") as folder:
            here = dataclasses.replace(setting, folder=folder)
            whole = ranks.run(uninterrupted, here, "run without a stop", 1)
            again = ranks.run(resumed, here, "run from its checkpoint", 1)
    finally:
        if before is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    later = whole["losses"][STOP:]
    return {
        "equal": whole["digest"] == again["digest"] and later == again["losses"],
        "steps": STEPS, "stopped_after": STOP, "updates": whole["updates"],
        "whole": whole, "resumed": again,
    }  # fmt: skip


def uninterrupted(rank: Rank) -> dict[str, Any]:
    """All steps in one go."""
    return _train(_config(rank, "whole", "never"), rank)


def resumed(rank: Rank) -> dict[str, Any]:
    """From the other run's checkpoint to the end."""
    checkpoint = _folder(rank) / "whole" / "checkpoints" / f"step-{STOP:08d}"
    return _train(_config(rank, "again", str(checkpoint)), rank)


def _folder(rank: Rank) -> Path:
    assert isinstance(rank.options, Setting)
    return Path(rank.options.folder)


def _config(rank: Rank, name: str, resume: str) -> RunConfig:
    folder = _folder(rank)
    tokens = corpus(folder, "tokens", rank.options.config(folder).model.vocab_size, rank.layout)
    config = rank.options.config(folder / name, tokens, update_interval=4, prune_start=0.5)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=STEPS, consistency_interval=0),
        checkpoint=dataclasses.replace(config.checkpoint, interval=STOP, resume=resume),
    )


def _train(config: RunConfig, rank: Rank) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The backward passes of fused attention add up in any order unless all of torch is made strict.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = run(config, rank.layout)
    digest = hashlib.blake2b(digest_size=16)
    vectors = vectors_of(trainer.engine, trainer.bank, trainer.layout)
    for name in sorted(vectors):
        digest.update(name.encode())
        digest.update(vectors[name].local.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    lines = (Path(config.train.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rank.tick()
    return {
        "digest": digest.hexdigest(), "losses": [json.loads(line)["loss"] for line in lines],
        "updates": trainer.topology.updates_done,
    }  # fmt: skip
