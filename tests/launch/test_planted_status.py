"""``status`` of a run folder that somebody else has written into: no hang, no traceback, nothing a terminal obeys."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launch.__main__ import main
from pretrain.run_folder import RunReader, note
from tests.pretrain.attempts import write_run_file

GOOD = {"rank": 0, "host": "one", "pid": 7, "phase": "training", "step": 3, "alive": 1e9, "moved": 1e9}
STEP = {"step": 3, "step_seconds": 0.5, "tokens_per_second": 100.0, "tokens": 300, "loss": 2.5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "heartbeat").mkdir(parents=True)
    write_run_file(folder / "config.yaml", "corpus", folder)
    (folder / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
    beat(folder, "rank-00000.json", GOOD)
    return folder


def beat(folder: Path, name: str, content: object) -> None:
    (folder / "heartbeat" / name).write_text(json.dumps(content))


def test_heartbeats_of_other_kinds_are_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted: list[object] = [
        [1], "text", 5, {}, {**GOOD, "rank": "1"}, {**GOOD, "rank": -1}, {**GOOD, "rank": 1e400},
        {**GOOD, "alive": [1]}, {**GOOD, "moved": "now"}, {**GOOD, "step": {}},
        {**GOOD, "step": 10**400}, {**GOOD, "host": ["x"]},
        {**GOOD, "phase": "x" * 10_000}, {**GOOD, "alive": 1e308}, {**GOOD, "pid": "7"},
    ]  # fmt: skip
    for number, content in enumerate(planted, 1):
        beat(run, f"rank-{number:05d}.json", content)
    (run / "heartbeat" / "rank-90000.json").write_text("[" * 100_000)
    (run / "heartbeat" / "rank-90001.json").write_bytes(b"\x00" * (2 << 20))
    (run / "heartbeat" / "rank-90002.json").symlink_to("/dev/zero")
    os.mkfifo(run / "heartbeat" / "rank-90003.json")
    assert list(RunReader(run).heartbeats()) == [0]
    assert main(["status", str(run)]) == 0
    assert "ranks       1 on 1 host" in capsys.readouterr().out


def test_rows_of_other_kinds_are_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**STEP, key: value} for key in STEP for value in ("x", [], {}, True, 10**400)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in [STEP, *rows]) + "\n" + "[" * 100_000)
    (run / "events.jsonl").write_text('{"time": "now"}\n{"time": 1e999, "kind": "x"}\n{"kind": ["a"]}\n[]\n')
    (run / "topology.jsonl").write_text('{"step": "x"}\n{"grown": [1]}\n')
    assert main(["status", str(run)]) == 0
    assert "step 3 of 14" in capsys.readouterr().out
    assert main(["status", str(run), "--json"]) == 0


def test_rows_that_lack_numbers_or_have_null_are_shown_without_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in STEP:
        for row in ({**STEP, key: None}, {name: value for name, value in STEP.items() if name != key}):
            (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            assert main(["status", str(run)]) == 0
    for row in ({}, {"step": None, "update": None, "grown": None}, {"step": 8}, {"grown": 3}):
        (run / "topology.jsonl").write_text(json.dumps(row) + "\n")
        assert main(["status", str(run)]) == 0
    assert "unknown" in capsys.readouterr().out


def test_nothing_that_a_terminal_obeys_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e"
    beat(run, "rank-00001.json", {**GOOD, "rank": 1, "host": escape, "phase": escape, "step": 1})
    (run / "events.jsonl").write_text(json.dumps({"time": 1.0, "kind": escape, escape: escape}) + "\n")
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "owned" in out and all(c.isprintable() or c == "\n" for c in out)


@pytest.mark.parametrize("name", ("metrics.jsonl", "events.jsonl", "topology.jsonl", "config.yaml"))
def test_a_pipe_in_place_of_a_file_does_not_hold_it_up(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert main(["status", str(run)]) == (2 if name == "config.yaml" else 0)


@pytest.mark.parametrize("content", ("train: {}\n", "train: [1]\n", "train: {steps: many}\n", "x: 1\n"))
def test_settings_of_another_kind_are_one_line(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(content)
    assert main(["status", str(run)]) == 2
    assert "has no train.steps" in capsys.readouterr().err


def test_a_note_is_not_written_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "precious")
    note(tmp_path, {"kind": "launch"})
    assert (tmp_path / "precious").read_text() == "kept" and "cannot be written" in capsys.readouterr().out
