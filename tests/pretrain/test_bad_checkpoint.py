"""Checkpoints that are missing, foreign, damaged or of another run are refused in one line; nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.folder import MANIFEST, STATE, describe, manifest_digest
from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt_all, write_run_file
from tests.pretrain.runs import settings, train_all, write_corpus

SMALL = {"train__steps": 4, "optimizer__warmup_steps": 0, "evaluation__interval": 0, "checkpoint__interval": 2}

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "missing": (("checkpoint.resume={0}/nowhere",), "checkpoint {0}/nowhere does not exist"),
    "missing among others": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000003",),
        "step-00000003 does not exist; published there: step-00000002, step-00000004",
    ),
    "a file": (
        ("checkpoint.resume={0}/run/config.yaml",),
        "checkpoint {0}/run/config.yaml is a file, expected a folder",
    ),
    "the folder above": (
        ("checkpoint.resume={0}/run/checkpoints",),
        "holds no manifest.json, so it is no published checkpoint of this program; inside it: step-00000002, step-0000",
    ),
    "a run folder": (
        ("checkpoint.resume={0}/run",),
        "{0}/run holds no manifest.json, so it is no published checkpoint of this program; inside its folder "
        "checkpoints: step-00000002, step-00000004",
    ),
    "a word": (("checkpoint.resume=Latest",), "checkpoint Latest does not exist, expected auto, never or the path of"),
    "of DeepSpeed": (
        ("checkpoint.resume={0}/deepspeed/global_step10",),
        "{0}/deepspeed/global_step10 holds no manifest.json, so it is no published checkpoint of this program",
    ),
    "of another program": (
        ("checkpoint.resume={0}/foreign",),
        "{0}/foreign/manifest.json is other-checkpoint version 1, expected smet-checkpoint version 1",
    ),
    "manifest that is none": (("checkpoint.resume={0}/list",), "{0}/list/manifest.json is damaged or not a manifest"),
    "older than what the run folder has": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "train.output_dir={0}/run"),
        "{0}/run/checkpoints goes on to step-00000004; leave checkpoint.resume out to go on from there, or choose",
    ),
    "of another width": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "model.intermediate_size=48"),
        "is of another model or density: model.layers.0.",
    ),
    "of another depth": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "model.num_hidden_layers=1"),
        " is not in this model (",
    ),
    "of another density": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "sparsity.density=0.5"),
        "is of another model or density: model.layers.0.self_attn.q_proj.values has 167 elements, expected 288 (",
    ),
    "of a dense run": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "sparsity.method=dense"),
        "is of another model or density: ",
    ),
    "of other data": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "data.train={0}/other"),
        "was trained on other data (data.train: ",
    ),
    "of another order of the data": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "data.seed=1"),
        "was trained on other data (data.seed: 0 -> 1; fingerprint ",
    ),
    "of another function": (
        ("checkpoint.resume={0}/run/checkpoints/step-00000002", "model.rope_theta=2.0", "model.rms_norm_eps=1.0"),
        ", expected ",
    ),
    "with another loss on its recorded batch": (
        ("checkpoint.resume={0}/changed/step-00000002",),
        "the recorded batch has loss ",
    ),
    "damaged": (
        ("checkpoint.resume={0}/damaged/checkpoints/step-00000004",),
        "checkpoint is damaged: {0}/damaged/checkpoints/step-00000004/__0_0.distcp does not match its checksum; try "
        "checkpoint.resume={0}/damaged/checkpoints/step-00000002",
    ),
}


def arrange(folder: Path) -> None:
    """Foreign and damaged checkpoints; those that need a run's own copy it. Runs after the training."""
    (folder / "deepspeed" / "global_step10").mkdir(parents=True)
    (folder / "deepspeed" / "latest").write_text("global_step10")
    (folder / "deepspeed" / "global_step10" / "mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04")
    for name, manifest in (("foreign", {"format": "other-checkpoint", "version": 1, "files": {}}), ("list", [1])):
        (folder / name).mkdir()
        (folder / name / MANIFEST).write_text(json.dumps(manifest))
    checkpoints = folder / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", folder / "changed" / "step-00000002")
    change_probe(folder / "changed" / "step-00000002")
    shutil.copytree(checkpoints, folder / "damaged" / "checkpoints")
    flip(folder / "damaged" / "checkpoints" / "step-00000004" / "__0_0.distcp", 1000)


def change_probe(checkpoint: Path) -> None:
    """Another loss of the recorded batch, in a checkpoint that is whole otherwise: its checksums fit."""
    state = json.loads((checkpoint / STATE).read_text())
    state["probe"]["loss"] *= 1.001
    (checkpoint / STATE).write_text(json.dumps(state))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][STATE] = describe(checkpoint / STATE)
    (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "self": manifest_digest(manifest)}))


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def refuse(folder: Path, job: dict[str, Any], cases: list[tuple[list[str], str]]) -> list[Attempt]:
    """Train, arrange, and make every attempt. Runs in the ranks."""
    train_all([job])
    arrange(folder)
    return attempt_all(cases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def attempts(folder: Path) -> dict[str, Attempt]:
    corpus = write_corpus(folder / "corpus", tokens=2000)
    write_corpus(folder / "other", tokens=2000, seed=1)
    file = write_run_file(folder / "new.yaml", corpus, folder / "new", **SMALL)
    cases = [([file, *(text.format(folder) for text in overrides)], str(folder)) for overrides, _ in CASES.values()]
    job = settings(corpus, folder / "run", **SMALL)
    return dict(zip(CASES, run_ranks(refuse, 1, folder, job, cases, timeout=240)[0], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(attempts: dict[str, Attempt], folder: Path, name: str) -> None:
    assert CASES[name][1].format(folder) in attempts[name].sole_error()
