"""A tiny run for cluster tests: its file, its commands, and what it must come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.distributed import run_ranks
from tests.pretrain.runs import outcome, settings, train, write_corpus

ROOT = Path(__file__).parent.parent.parent


class Run:
    """One run file below ``folder``, and its commands.

    Args:
        folder: for corpus, run file and output.
        name: of the run folder.
        changes: settings, as ``tests.pretrain.runs.settings`` takes them.
    """

    def __init__(self, folder: Path, name: str = "run", **changes: Any):
        self.folder, self.output = folder, folder / name
        self.corpus = write_corpus(folder / "corpus")
        quick = {"operation__heartbeat": 1.0, "evaluation__interval": 0, "evaluation__samples": 1}
        self.settings = settings(self.corpus, self.output, **{**quick, **changes})
        self.file = folder / "run.yaml"
        self.file.write_text(yaml.safe_dump(self.settings))

    def environ(self, **more: str) -> dict[str, str]:
        """One thread per rank, and this project's Python first, as an activated environment has it."""
        path = f"/usr/bin:/bin:/usr/sbin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **more}

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """``python -m launch run.yaml ARGUMENTS``; its screen goes to a file."""
        with open(self.folder / "screen", "a") as screen:
            return subprocess.Popen(
                [sys.executable, "-m", "launch", str(self.file), *arguments], cwd=ROOT, env=self.environ(**environ),
                stdout=screen, stderr=screen, text=True,
            )  # fmt: skip

    def launch(self, *arguments: str, timeout: float = 400.0, **environ: str) -> int:
        """The same, to its end."""
        process = self.start(*arguments, **environ)
        try:
            return process.wait(timeout)
        finally:
            end(process)

    def stop_midway(self, *arguments: str, **environ: str) -> None:
        """Start it, and ask it to stop after a few steps: it saves the step that it has reached."""
        process = self.start(*arguments, **environ)
        try:
            self.until(lambda: self.step() >= 5, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(200) == 75, self.screen()
        finally:
            end(process)
        assert 5 <= self.step() < self.settings["train"]["steps"]
        assert (self.output / "checkpoints" / "latest").read_text() == f"step-{self.step():08d}\n"

    def screen(self) -> str:
        """What the commands have printed so far."""
        return (self.folder / "screen").read_text()

    def step(self) -> int:
        """Last step that is done."""
        path = self.output / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except ValueError:
            return 0  # just being written

    def published(self) -> set[str]:
        """Names of the checkpoints that are there whole."""
        return {path.name for path in (self.output / "checkpoints").glob("step-*")}

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400.0) -> None:
        """Wait while the run goes on; tell its screen if that does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, self.screen()
            time.sleep(0.05)

    def hosts(self) -> set[str]:
        """Where its ranks ran last."""
        files = (self.output / "heartbeat").glob("rank-*.json")
        return {json.loads(path.read_text())["host"] for path in files}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        lines = (self.output / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


def end(process: subprocess.Popen[str]) -> None:
    """End a supervisor, and the run with it."""
    for _ in range(2):
        if process.poll() is None:
            process.terminate()
            time.sleep(0.2)
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def undisturbed(run: Run, ranks: int = 2) -> dict[str, Any]:
    """What the same run comes to on ranks of this machine, without interruption."""
    job = {**run.settings, "train": {**run.settings["train"], "output_dir": str(run.folder / "plain")}}
    return run_ranks(train, ranks, job, timeout=400)[0]  # up to 300 steps, each saved


def assert_equal(run: Run, plain: dict[str, Any]) -> None:
    """Every step once, the same losses to the last bit, and the same masks after each topology update."""
    found = outcome(run.output)
    assert found["steps"] == plain["steps"]
    assert found["losses"] == plain["losses"]
    assert found["digests"] == plain["digests"] and len(found["digests"]) > 1
