"""Resumed equals uninterrupted: bit for bit at the same layout, to rounding at any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.distributed import run_ranks
from tests.pretrain.runs import outcome, settings, train_all, write_corpus

STEPS = list(range(1, 15))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


@pytest.mark.parametrize("stage,precision", [(1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_resume_at_the_same_layout_is_exact(corpus: str, tmp_path: Path, stage: int, precision: str) -> None:
    common = {"parallel__zero_stage": stage, "train__precision": precision}
    whole = settings(corpus, tmp_path / "whole", **common)
    stops = [settings(corpus, tmp_path / "parts", **common, train__stop_at=stop) for stop in (3, 4, 9, 14)]
    results = run_ranks(train_all, 2, [whole, *stops])[0]
    uninterrupted, resumed = results[0], results[-1]
    assert uninterrupted["steps"] == resumed["steps"] == STEPS
    assert resumed["losses"] == uninterrupted["losses"]
    assert resumed["norms"] == uninterrupted["norms"]
    assert resumed["validation"] == uninterrupted["validation"]
    assert resumed["digests"] == uninterrupted["digests"] and len(resumed["digests"]) == 3
    assert resumed["masks"] == uninterrupted["masks"]


def test_resume_at_another_layout(corpus: str, tmp_path: Path) -> None:
    """A checkpoint of two ranks under ZeRO-2 goes on at one and four ranks, under ZeRO 1, 2 and 3."""
    first = settings(corpus, tmp_path / "first", parallel__zero_stage=2, train__stop_at=6)
    rest = settings(corpus, tmp_path / "first", parallel__zero_stage=2)
    begun = run_ranks(train_all, 2, [first])[0][0]
    saved = tmp_path / "first" / "checkpoints" / "step-00000006"
    ends = {}
    for world, stage in ((1, 3), (1, 1), (4, 1), (4, 3)):
        job = settings(
            corpus, tmp_path / f"to-{world}-{stage}", parallel__zero_stage=stage, checkpoint__resume=str(saved)
        )
        stop = {**job, "train": {**job["train"], "stop_at": 7, "output_dir": str(tmp_path / f"one-{world}-{stage}")}}
        one_step, to_the_end = run_ranks(train_all, world, [stop, job])[0]
        assert one_step["masks"] == begun["masks"], "the masks that were saved are the masks that were loaded"
        ends[world, stage] = to_the_end
    reference = run_ranks(train_all, 2, [rest])[0][0]
    for end in ends.values():
        assert end["steps"] == STEPS[6:]
        assert end["losses"] == pytest.approx(reference["losses"][6:], rel=2e-5)
        assert end["validation"] == pytest.approx(reference["validation"][1:], rel=2e-5)
        assert end["digests"] == {step: digest for step, digest in reference["digests"].items() if step > 6}


def test_killed_at_any_moment_resumes_exactly(corpus: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of steps and saves; the run that goes on ends as if nothing had happened."""
    whole = settings(corpus, tmp_path / "whole", checkpoint__interval=2, train__steps=40)
    torn = settings(corpus, tmp_path / "torn", checkpoint__interval=2, train__steps=40)
    run_ranks(train_all, 1, [whole])
    config = tmp_path / "torn.yaml"
    config.write_text(yaml.safe_dump(torn))
    metrics = tmp_path / "torn" / "metrics.jsonl"
    for kill_after in (3, 17, 30):
        process = _start(config)
        while process.poll() is None and _steps(metrics) < kill_after:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert _start(config).wait(timeout=120) == 0
    assert outcome(tmp_path / "torn") == outcome(tmp_path / "whole")


def _start(config: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "pretrain", str(config)]
    return subprocess.Popen(command, env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def _steps(metrics: Path) -> int:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(lines[-1])["step"])
    except (IndexError, ValueError, KeyError):
        return 0
