"""tools.plot_run: the summary's figures, the picture, and runs that are torn, diverged or missing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tools.plot_run import main

MEMORY = {"sparse_layers": {"measured": 3_000_000, "planned_if_dense": 12_000_000, "ratio_to_dense": 0.25}}


def step(number: int, **more: Any) -> dict[str, Any]:
    speed = 1000.0 + number
    return {"step": number, "loss": 9.0 - number, "tokens_per_second": speed, "skipped": False, **more}


def update(number: int, low: float = 0.25, high: float = 0.25) -> dict[str, Any]:
    return {"step": number, "update": 1, "fraction": 0.2, "density": {"a": low, "b": high}}


def write_run(folder: Path, rows: list[dict[str, Any]], updates: list[dict[str, Any]], memory: Any = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if updates:
        (folder / "topology.jsonl").write_text("".join(json.dumps(row) + "\n" for row in updates))
    if memory is not None:
        (folder / "memory.json").write_text(json.dumps(memory))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [step(1), step(2, skipped=True), step(3, validation_loss=5.5, validation_perplexity=244.7), step(4), step(5)]
    rows[3].update(validation_loss=5.0, validation_perplexity=148.4)
    return write_run(tmp_path / "a run", rows, [update(2), update(4, low=0.1, high=0.6)], MEMORY)


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height in pixels of a PNG, whose header this checks."""
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_json_holds_the_figures_of_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": str(run),
        "steps": 5,
        "loss": 4.0,
        "tokens_per_second_median": 1003.0,
        "topology_updates": 2,
        "skipped_steps": 1,
        "validation_loss": 5.0,
        "validation_perplexity": 148.4,
        "sparse_layer_bytes_per_rank": 3_000_000,
        "same_layers_dense_bytes_per_rank": 12_000_000,
        "memory_ratio": 0.25,
        "plot": str(run / "run.png"),
    }


def test_lines_for_a_person_and_a_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "elsewhere.png"
    assert main([str(run), "--output", str(picture)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "5 steps, 2 topology updates, loss 4.0000",
        "validation perplexity 148.40 (loss 5.0000)",
        "throughput 1,003 tokens/s (median step)",
        "sparse layers hold 3.00 MB per rank at rest (measured); dense AdamW would hold 12.00 MB: 25.0 %",
        "1 steps were skipped for gradients that were not finite",
        f"plot: {picture}",
    ]
    width, height = size_of(picture)
    assert width > 500 and height > 500
    assert not (run / "run.png").exists()


def test_topology_updates_are_in_the_picture(run: Path, tmp_path: Path) -> None:
    """The same run without its updates gives another picture: what is marked is really drawn."""
    assert main([str(run), "--output", str(tmp_path / "with.png")]) == 0
    (run / "topology.jsonl").unlink()
    assert main([str(run), "--output", str(tmp_path / "without.png")]) == 0
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_a_line_cut_off_by_a_crash_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics.jsonl", "topology.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 6, "lo')
    assert main([str(run), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["steps"], summary["topology_updates"]) == (5, 2)


def test_a_diverged_run_is_drawn_and_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [step(1), step(2, loss=None), step(3, loss=None, validation_loss=None, validation_perplexity=None)]
    run = write_run(tmp_path / "diverged", rows, [])
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "3 steps, 0 topology updates, loss not finite",
        "validation perplexity not finite (loss not finite)",
    ]
    assert size_of(run / "run.png") > (500, 500)


def test_one_step_without_anything_else_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "short", [step(1)], [])
    assert main([str(run), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["loss"] == 8.0 and "memory_ratio" not in summary and "validation_loss" not in summary


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "lo'])
def test_no_run_is_one_clear_line(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nothing"
    if content is not None:
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(content)
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {folder} holds no finished step in metrics.jsonl, expected a run folder (train.output_dir)\n"
    )
    assert not (folder / "run.png").exists()


def test_a_picture_that_cannot_be_written_is_one_clear_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--output", str(run / "missing" / "plot.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "missing" in line
