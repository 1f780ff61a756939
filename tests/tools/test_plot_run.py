"""tools.plot_run: the summary's figures, the picture, several runs in one, and runs torn, diverged or missing."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.figures.style import SMET
from tools.plot_run import main

MEMORY = {"sparse_layers": {"measured": 3_000_000, "planned_if_dense": 12_000_000, "ratio_to_dense": 0.25}}


def step(number: int, **more: Any) -> dict[str, Any]:
    speed = 1000.0 + number
    return {"step": number, "loss": 9.0 - number, "tokens_per_second": speed, "skipped": False, **more}


def update(number: int, low: float = 0.25, high: float = 0.25) -> dict[str, Any]:
    return {"step": number, "update": 1, "fraction": 0.2, "grown": 12, "density": {"a": low, "b": high}}


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
        "name": "a run",
        "smoothed_over": 1,
        "left_out": {
            "learning rate": "not in metrics.jsonl",
            "gradient norm": "not in metrics.jsonl",
            "MFU": "not in metrics.jsonl",
            "peak memory": "not in metrics.jsonl",
        },
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
        "left out: learning rate, gradient norm, MFU, peak memory (not in metrics.jsonl)",
        f"plot: {picture}",
    ]
    width, height = size_of(picture)
    assert width > 500 and height > 500
    assert not (run / "run.png").exists()


def full_run(folder: Path, method: str, steps: int = 60, loss: float = 4.0, updates: bool = True) -> Path:
    """A run with everything that is measured."""
    rows = [
        {
            "step": n, "loss": loss + 4 / n + 0.1 * (n % 3), "lr": 1e-3 * min(1, n / 10), "grad_norm": 1.0 + n % 5,
            "tokens": 100 * n, "tokens_per_second": 1000.0 + n, "mfu": 0.3, "memory_peak_fullest": 2e9,
            "skipped": n == 7,
            **({"validation_loss": loss + 0.2, "validation_perplexity": 60.0} if n % 20 == 0 else {}),
        }
        for n in range(1, steps + 1)
    ]  # fmt: skip
    made = write_run(folder, rows, [update(10), update(20)] if updates else [], MEMORY)
    (folder / "config.yaml").write_text(f"sparsity:\n  method: {method}\n")
    return made


def words(picture: Path) -> str:
    """The text in an SVG, a label a line."""
    return "\n".join(re.findall(r">([^<>]+)</text>", picture.read_text(encoding="utf-8")))


def has_color(picture: Path, color: str) -> bool:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)
    return bool((abs(pixels - wanted).max(axis=-1) <= 6).sum() > 50)


def test_every_axis_has_a_unit_and_the_smoothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = full_run(tmp_path / "mine", "smet")
    picture = tmp_path / "a.svg"
    assert main([str(run), "--out", str(picture), "--smooth", "20", "--title", "Mine & $your$", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["smoothed_over"] == 20 and said["left_out"] == {"density": "25 % throughout"}
    text = words(picture)
    for word in (
        "Mine &amp; $your$", "loss (nats per token)", "training loss, every step", "smoothed over 20 steps",
        "validation loss", "topology update", "skipped step", "learning rate", "gradient norm", "(tokens/s)", "MFU (%)",
        "fullest rank (GB)", "(per update)", "MB per rank", "optimizer step", "25 % of dense", "density 0.25",
    ):  # fmt: skip
        assert word in text, word


def test_smet_is_drawn_in_its_colour_and_no_other_method_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And where the metrics end, so does the picture: without updates there are no marks of them."""
    smet, dense = full_run(tmp_path / "smet", "smet"), full_run(tmp_path / "dense", "dense", updates=False)
    assert main([str(smet)]) == main([str(dense)]) == 0
    assert "left out: tiles moved, density (no topology updates)" in capsys.readouterr().out
    assert has_color(smet / "run.png", SMET) and not has_color(dense / "run.png", SMET)
    assert (smet / "run.png").stat().st_size < 120_000


def test_several_runs_are_laid_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [
        full_run(tmp_path / "a" / "run", "dense", 90, 4.3, updates=False),
        full_run(tmp_path / "b" / "run", "smet"),
    ]
    folders.append(write_run(tmp_path / "c", [step(1), step(2, loss=None)], []))
    assert main([*map(str, folders), "--out", "a.svg"]) == 0
    text, lines = words(tmp_path / "a.svg"), capsys.readouterr().out.splitlines()
    assert "Last training loss: b/run" in text and "1 diverged" in text
    assert "a/run: dense, 90 steps, 9 k tokens" in text and "b/run: smet, density 0.25" in text
    assert [line.split()[:3] for line in lines[:3]] == [
        ["run", "steps", "loss"], ["a/run", "90", "4.3444"], ["b/run", "60", "4.0667"],
    ]  # fmt: skip
    assert lines[3].split()[1:4] == ["2", "not", "finite"]
    assert "tiles moved of a/run" in lines[4] and lines[5] == "plot: a.svg"
    assert main([str(folders[0]), str(folders[1]), "--name", "dense $AdamW$", "--name", "SMET", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in said["runs"]] == ["dense $AdamW$", "SMET"] and said["plot"] == "runs.png"
    assert has_color(tmp_path / "runs.png", SMET) and (tmp_path / "runs.png").stat().st_size < 120_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{a}", "{a}/../a"], "{a}/../a is given twice, expected every run once"),
        (["{a}", "{b}", "--name", "x", "--name", "x"], "--name x is given twice, expected another name for every run"),
        (["{a}", "{b}", "--name", "x"], "--name is given 1 times, expected once for each of the 2 runs"),
        (["{a}", "{c}"], "{c} holds no finished step in metrics.jsonl, expected a run folder (train.output_dir)"),
        (["{a}", "--out", "{a}/x.txt"], "--out {a}/x.txt is no picture's name, expected one that ends in "
         ".png, .pdf, .svg, .jpg"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_one_clear_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: str(tmp_path / name) for name in "abc"}
    for name in "ab":
        write_run(tmp_path / name, [step(1)], [])
    assert main([part.format(**places) for part in arguments]) == 2
    assert capsys.readouterr().err == f"error: {said.format(**places)}\n"


def test_smoothing_over_no_steps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-3", "x"):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--smooth", wrong])
        assert f"is '{wrong}', expected a number of steps, 1 or more" in capsys.readouterr().err


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
