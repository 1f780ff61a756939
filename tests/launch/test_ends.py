"""The supervisor's last line and ``status`` of a run that stands: what is saved, and the command that goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launch.attempt import Ended
from launch.ends import command_of, goes_on
from launch.status import report, status_of
from pretrain.command import told
from pretrain.exit_codes import DONE, FAILED, STOPPED, USER
from pretrain.run_folder import Reached
from tests.launch import test_supervisor
from tests.launch.test_status import NOW, beat, lines, run
from tests.launch.test_supervisor import Cluster, supervise

folder, run_folder = test_supervisor.folder, run  # fixtures


@pytest.mark.parametrize(
    ("code", "reached", "asked", "said"),
    [
        (DONE, Reached(10**6, 10**6), False, "done: step 1,000,000, beyond train.steps "),
        (DONE, Reached(3, 3), False, "stopped at train.stop_at: step 3 of "),
        (STOPPED, Reached(3, 3), False, "stopped as asked: step 3 of "),
        (1, Reached(3, 3), True, "stopped as asked: step 3 of "),
        (USER, Reached(3, 3), False, "ended: step 3 of "),
    ],
)
def test_the_last_line_says_what_is_saved_and_goes_on(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    reached: Reached,
    asked: bool,
    said: str,
) -> None:
    cluster = Cluster(folder, [(Ended(code, "because"), reached)])
    if asked:
        cluster.during = lambda number: cluster.signals.received.append(signal.SIGINT)
    supervise(cluster, monkeypatch)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(said) and f"saved in {folder}/checkpoints/step-{reached.checkpoint:08d}; " in line
    then = {DONE: "train.stop_at=0" if reached.step == 3 else told("plot")}.get(code, "the same com")
    assert then in line


def test_one_that_gives_up_before_its_first_save_says_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert supervise(Cluster(folder, [(Ended(1, "why"), None)]), monkeypatch, max_restarts=0)[0] == FAILED
    assert "nothing is saved yet; to go on: the same command" in capsys.readouterr().out.splitlines()[-1]


def test_secrets_do_not_get_into_the_command() -> None:
    given = ["run.yaml", "--env", "KEY=secret", "--env=TOKEN=secret", "--env", "HOME", "train.output_dir=a b"]
    noted = command_of(given)
    assert noted == "smet launch run.yaml --env KEY --env=TOKEN --env HOME 'train.output_dir=a b'"


def stop(folder: Path, why: str) -> None:
    for rank in range(4):
        beat(folder, rank, phase="ended")
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": NOW, "kind": "end", "step": 90, "why": why}) + "\n")


def test_a_stopped_run_has_steps_to_go_and_no_time_left(run_folder: Path) -> None:
    stop(run_folder, "SIGTERM")
    status = status_of(run_folder, NOW)
    assert (status["state"], status["why"]) == ("stopped", "SIGTERM")
    text = report(status)
    assert text.startswith(f"{run_folder}: stopped (SIGTERM), step 90 of 100 (90.0%)\n")
    assert "2.00 s per step, 10 steps to go, 20s at that speed" in text and "left" not in text
    assert f"to go on    {told('launch')} {run_folder}/config.yaml --hostfile HOSTS\n" in text


@pytest.mark.parametrize("start", ["smet launch", "python -m launch"])  # the second: release 0.1
def test_the_command_that_started_it_is_the_one_that_goes_on(run_folder: Path, start: str) -> None:
    (run_folder / "config.yaml").write_text(f"train: {{steps: 100, stop_at: 90, output_dir: {run_folder}}}\n")
    event = {"time": NOW, "kind": "launch", "command": f"{start} a.yaml train.stop_at=90 --nodes 2"}
    lines(run_folder / "events.jsonl", [event])
    stop(run_folder, "train.stop_at")
    assert status_of(run_folder, NOW)["goes_on_with"] == f"{told('launch')} a.yaml --nodes 2 train.stop_at=0"


def test_a_killed_run_names_a_command_too(run_folder: Path) -> None:
    for rank in range(4):
        beat(run_folder, rank, alive=NOW - 500)
    text = report(status_of(run_folder, NOW))
    assert "not running, step 90" in text and f"to go on    {told('launch')}" in text


def test_a_run_that_is_done_or_runs_needs_no_command(run_folder: Path) -> None:
    assert "to go on" not in report(status_of(run_folder, NOW))
    lines(run_folder / "metrics.jsonl", [{"step": 100, "loss": 1.0, "tokens": 1, "step_seconds": 1.0}])
    text = report(status_of(run_folder, time.time() + 1e6))
    assert "done, step 100" in text and "to go on" not in text and "left" not in text


@pytest.mark.parametrize(
    ("settings", "ranks", "expected"),
    [
        ({}, 1, "{smet} train {0}/config.yaml"),
        (
            {"checkpoint": {"resume": "/x"}},
            2,
            "deepspeed --num_gpus 2 --module pretrain {0}/config.yaml checkpoint.",
        ),
        (
            {"train": {"stop_at": 5, "output_dir": "/old"}},
            1,
            "{smet} train {0}/config.yaml train.stop_at=0 tr",
        ),
    ],
)
def test_without_launch_the_folders_own_settings_go_on(
    tmp_path: Path, settings: dict[str, Any], ranks: int, expected: str
) -> None:
    assert goes_on(tmp_path, settings, 7, ranks, 1, None).startswith(expected.format(tmp_path, smet=told()))
