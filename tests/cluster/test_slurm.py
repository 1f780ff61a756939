"""A Slurm job over two nodes: told ahead of its time limit, requeued, and finished."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.runs import ROOT, Run, assert_equal, undisturbed
from tests.cluster.slurm import Slurm

pytestmark = pytest.mark.cluster


def submit(run: Run, slurm: Slurm, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launch", str(run.file), "--slurm", "--nodes", "2", "--gpus-per-node", "1", "--json",
         "--master-addr", "127.0.0.1", f"--sbatch=--output={run.folder}/screen", "--env", "SLURM_CONF", *arguments],
        cwd=ROOT, env=run.environ(**slurm.environ), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["job"])


def wait_for(run: Run, slurm: Slurm, job: str, states: set[str], seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while slurm.state(job) not in states:
        screen = run.screen() if (run.folder / "screen").exists() else ""
        assert time.monotonic() < deadline, f"{slurm.state(job)}: {screen} {slurm.logs()}"
        time.sleep(0.3)


def test_a_job_is_told_to_save_requeued_and_finishes(slurm: Slurm, tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint__interval=4, train__steps=100)
    job = submit(run, slurm, "--time", "20", "--preflight")
    deadline = time.monotonic() + 400
    while run.step() < 6:
        assert time.monotonic() < deadline, slurm.logs() + run.screen()
        time.sleep(0.05)
    slurm.call("scancel", "--signal=USR1", "--batch", job)  # what --signal=B:USR1@300 does ahead of the limit
    wait_for(run, slurm, job, {"PENDING", "REQUEUED"}, 200)
    stopped = run.step()
    assert 6 <= stopped < 100
    assert (run.output / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}\n"
    wait_for(run, slurm, job, {"COMPLETED"})
    assert [event["step"] for event in run.events("ended")] == [stopped]
    assert run.events("launch")[-1]["hosts"] == ["node1", "node2"] and run.events("launch")[-1]["world_size"] == 2
    assert_equal(run, undisturbed(run))
