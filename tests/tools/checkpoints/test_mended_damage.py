"""Damage in a checkpoint whose checksums were made anew: one line, or a reading; never code, hangs or tracebacks."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from tests.damage import mend_checkpoint, mutate
from tests.tools.checkpoints.models import make_hf
from tools import export_hf, import_hf, inspect_checkpoint

SAMPLE, ALL = 24, 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sparse checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    make_hf(folder / "hf")
    assert import_hf.main([str(folder / "hf"), str(folder / "out"), "--density", "0.5"]) == 0
    return folder / "out" / "step-00000000"


def sweep(whole: Path, folder: Path, numbers: range, capsys: pytest.CaptureFixture[str]) -> None:
    for number in numbers:
        rng = random.Random(f"mended {number}")
        step = folder / str(number) / whole.name
        shutil.copytree(whole, step)
        how = [mutate(step, rng, folder / "it-ran") for _ in range(rng.choice([1, 1, 2]))]
        with contextlib.suppress(AttributeError, KeyError, OSError, TypeError, ValueError):  # no manifest any more
            mend_checkpoint(step)
        capsys.readouterr()
        for tool, words in ((inspect_checkpoint, [str(step)]), (export_hf, [str(step), f"{step}-out"])):
            code = tool.main(words)
            out, err = capsys.readouterr()
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            story = (number, how, code, out, err)
            assert code == 0 or (code == 2 and len(errors) == 1 and len(errors[0]) < 800), story
            assert not any(word in out + err for word in ("Traceback", "Error:", "\x1b")), story
            assert not (folder / "it-ran").exists(), story
        shutil.rmtree(folder / str(number))


def test_a_sample(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(whole, tmp_path, range(SAMPLE), capsys)


@pytest.mark.sweep
def test_all(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(whole, tmp_path, range(SAMPLE, ALL), capsys)
