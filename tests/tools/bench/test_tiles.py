"""``python -m tools.bench tiles``: cases, table and page of a quick run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smet.kernels import tiles_cpu
from tools.bench.__main__ import main
from tools.bench.tiles import DENSITIES, DTYPES, SHAPES, TILES, _cases

pytestmark = pytest.mark.skipif(tiles_cpu.library() is None, reason="no AVX-512, or no C++ compiler")


def test_a_quick_run_is_measured_and_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = tmp_path / "result.json", tmp_path / "page.md"
    assert main(["tiles", "--quick", "--json", str(result)]) == 0
    shown = capsys.readouterr().out
    rows = json.loads(result.read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["fp32", "bf16"]
    assert all(max(row["errors"].values()) < 0.01 and row["ratios"]["all"]["median"] > 0 for row in rows)
    assert main(["render", str(result), str(page)]) == 0
    assert shown in page.read_text() and "AVX-512" in page.read_text()


def test_every_shape_tile_and_density_that_fits_is_a_case() -> None:
    cases = list(_cases(quick=False))
    fit = [(s, t) for s in SHAPES for t in TILES if s[0] % t[0] == s[1] % t[1] == 0]
    assert len(cases) == len(set(cases)) == len(DTYPES) * len(fit) * len(DENSITIES)


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiles", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads is 0, expected 1 or more\n"
