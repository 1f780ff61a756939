"""``python -m launch status`` on run folders in every state; the folder is left as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.status import report, status_of
from pretrain.numbers import duration, so_far
from pretrain.run_folder import RunReader

NOW = 1_000_000.0


def lines(path: Path, records: list[dict[str, Any]], cut: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + cut)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Step 90 of 100 at 2 s per step, a checkpoint, three events, four ranks; a line is just being written."""
    folder = tmp_path / "run"
    (folder / "heartbeat").mkdir(parents=True)
    (folder / "config.yaml").write_text("train: {steps: 100}\n")
    metrics = [
        {"step": n, "loss": 3.0, "tokens": n * 1000, "tokens_per_second": 500.0, "step_seconds": 2.0}
        for n in range(1, 91)
    ]
    metrics[-5]["step_seconds"] = 500.0  # one slow step is no trend
    lines(folder / "metrics.jsonl", metrics, cut='{"step": 91, "lo')
    lines(folder / "topology.jsonl", [{"step": 80, "update": 4, "fraction": 0.1, "grown": 12, "seconds": 0.1}])
    lines(
        folder / "events.jsonl",
        [
            {"time": NOW - 500, "kind": "skip", "step": 40, "samples": [1, 2]},
            {"time": NOW - 400, "kind": "restart", "attempt": 1, "reason": "exit code 1", "hosts": ["a"]},
            {"time": NOW - 300, "kind": "skip", "step": 60},
        ],
    )
    for step in (40, 80):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "step-00000085").mkdir()  # damaged: without a manifest
    (folder / "checkpoints" / ".tmp-step-00000090").mkdir()
    for rank in range(4):
        beat(folder, rank)
    return folder


def beat(folder: Path, rank: int, **changes: Any) -> None:
    record = {
        "rank": rank, "host": f"host-{rank // 2}", "pid": 100 + rank, "step": 90, "phase": "backward", "progress": 9,
        "moved": NOW - 2, "alive": NOW - 1, **changes,
    }  # fmt: skip
    (folder / "heartbeat" / f"rank-{rank:05d}.json").write_text(json.dumps(record))


def test_a_running_run(run: Path) -> None:
    status = status_of(run, NOW)
    assert (status["state"], status["step"], status["steps"]) == ("running", 90, 100)
    assert (status["seconds_left"], status["tokens_per_second"]) == (20.0, 500.0)
    assert status["checkpoint"]["step"] == 80 and status["checkpoint"]["kept"] == 2
    assert status["restarts"] == 1 and status["events"] == {"skip": 2, "restart": 1}
    assert status["topology"]["update"] == 4 and status["laggard"] is None
    text = report(status)
    for expected in (
        "running, step 90 of 100 (90.0%)", "500 tokens/s, 2.00 s per step, 20s left", "step-00000080",
        "2 x skip, 1 x restart", "restart: attempt 1, reason exit code 1", "update 4 after step 80: 12 tiles moved",
        "4 on 2 hosts",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    ("rank", "changes"),
    [
        (2, {"step": 89, "phase": "data"}),
        (3, {"moved": NOW - 300}),
        (1, {"alive": NOW - 500, "moved": NOW - 500}),
    ],
)
def test_the_rank_that_lags_is_named(run: Path, rank: int, changes: dict[str, Any]) -> None:
    beat(run, rank, **changes)
    status = status_of(run, NOW)
    assert status["laggard"]["rank"] == rank
    assert f"rank {rank} on host-{rank // 2} lags" in report(status)


def test_a_run_that_stands(run: Path) -> None:
    for rank in range(4):
        beat(run, rank, alive=NOW - 500)
    status = status_of(run, NOW)
    assert status["state"] == "not running" and status["laggard"] is None


def test_a_run_that_is_done(run: Path) -> None:
    lines(run / "metrics.jsonl", [{"step": 100, "loss": None, "tokens": 1, "step_seconds": 1.0}])
    status = status_of(run, time.time() + 1e6)
    assert (status["state"], status["seconds_left"]) == ("done", 0.0)
    assert "loss not finite" in report(status)


def test_a_run_of_more_steps_than_train_steps_says_now_is_not_step_12_of_5(run: Path) -> None:
    (run / "config.yaml").write_text("train: {steps: 5}\n")
    status = status_of(run, time.time() + 1e6)
    first = report(status).splitlines()[0]
    assert first == f"{run}: done, step 90, beyond train.steps 5"
    assert " left" not in report(status) and " to go" not in report(status)
    assert (status["step"], status["steps"]) == (90, 5)
    assert [so_far(step, 5) for step in (0, 5, 6)] == ["0 of 5", "5 of 5", "6, beyond train.steps 5"]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 100}\n")
    text = report(status_of(tmp_path, NOW))
    assert "not running, step 0 of 100" in text and "none yet" in text and "no heartbeat" in text


def test_a_long_file_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, [{"step": n, "filler": "x" * 100} for n in range(10_000)])
    found = RunReader(tmp_path).tail(path.name, 10_000)
    assert found[-1]["step"] == 9999 and 50 < len(found) < 100
    assert RunReader(tmp_path).tail("none") == []


def test_progress_is_what_is_published(run: Path) -> None:
    assert vars(RunReader(run).reached()) == {"checkpoint": 80, "step": 90}
    assert len(RunReader(run).events()) == 3


def test_the_command_leaves_the_folder_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["status", str(run)]) == 0
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 90
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no config.yaml, expected a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (75, "1m15s"), (4000, "1h06m"), (200_000, "2d07h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
