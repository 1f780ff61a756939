"""docs/plots.md: its commands draw what they say, and its table of colours is the style's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.pages import ROOT, commands
from tools.figures.style import COLORS
from tools.plot_run import main

PAGE = "docs/plots.md"


def test_its_commands_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for method in ("dense", "set", "smet"):
        folder = tmp_path / "runs" / method
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"sparsity:\n  method: {method}\n")
        rows = (f'{{"step": {n}, "loss": {5 - n / 100}, "tokens_per_second": 9.0}}\n' for n in range(1, 51))
        (folder / "metrics.jsonl").write_text("".join(rows))
    drawn = []
    for line in commands(PAGE):
        assert main(shlex.split(line.removeprefix("smet plot"))) == 0
        drawn.append(capsys.readouterr().out.splitlines()[-1].removeprefix("plot: "))
    assert drawn == ["runs/smet/run.png", "compared.png", "two.svg"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)


def test_its_picture_is_there_and_small_and_every_colour_is_listed() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    (image,) = re.findall(r"\]\((images/[^)]+)\)", text)
    assert 5000 < (ROOT / "docs" / image).stat().st_size < 120_000
    assert len(re.findall(r"^\| (?!colour|---)", text, re.M)) == len(COLORS)
