"""Every program of docs/trainers.md runs, in the order of the page, and prints what the page says of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pages import blocks

PAGE = "docs/trainers.md"

PRINTED: dict[str, Callable[..., bool]] = {
    "dense": lambda loss: loss < 1.0,
    "sparse": lambda before, updates, after: updates == 6 and after < before,
    "tuned": lambda first, last: last < first,
    "vit": lambda layers, first, last: layers == 12 and last < first,
    "lora": lambda trained, before, after, merged: trained == 12 and after < before and abs(merged - after) < 0.02,
    "8-bit": lambda before, after, stored: after < before and stored == 36_864,
    "average of 21": lambda average, last: average < last + 0.1,
    "distilled": lambda first, last: last < first / 2,
    "export": lambda sparse, plain, ours, theirs: sparse < 0.5 * plain and ours == theirs,
}
"""What the last line of each program begins with, and what its numbers have to be."""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="trl needs Python 3.11")
def test_the_programs_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.syspath_prepend(Path(sys.prefix) / "peers")  # torchao, where setup_env.sh --dev puts it
    scope: dict[str, Any] = {}
    programs = blocks(PAGE, "python")
    assert len(programs) == len(PRINTED)
    for program, (start, right) in zip(programs, PRINTED.items(), strict=True):
        assert len(program.splitlines()) <= 40, "a screen"
        exec(compile(program, f"{PAGE}, {start}", "exec"), scope)
        line = capsys.readouterr().out.splitlines()[-1]
        begin, _, rest = line.partition(": ")
        numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", rest.rstrip())]
        assert begin == start and right(*numbers), line
