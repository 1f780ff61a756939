"""``python -m tools.bench tiles``: cases, table and page of a quick run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from smet.kernels import tiles_cpu
from tools.bench import whole
from tools.bench.__main__ import main
from tools.bench.tiles import DENSITIES, SHAPES, TILES, _cases

pytestmark = pytest.mark.skipif(tiles_cpu.library() is None, reason="no AVX-512, or no C++ compiler")


def test_a_quick_run_is_measured_and_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = tmp_path / "result.json", tmp_path / "page.md"
    assert main(["tiles", "--quick", "--json", str(result)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(result.read_text())
    rows, unit = found["products"], tiles_cpu.instructions() == "AMX"
    assert [row["dtype"] for row in rows] == ["bf16", "fp32"]
    assert all(max(row["errors"].values()) < 0.01 and row["ratios"]["all"]["median"] > 0 for row in rows)
    assert unit == (found["held"] is not None), "once more without the matrix unit"
    if unit:
        assert [row["dtype"] for row in found["held"]["products"]] == ["bf16"] and len(found["held"]["steps"]) == 1
        assert shown.count("held to AVX-512") == 2
    assert found["machine"]["dense"] == ("AMX" if unit else found["machine"]["dense"])
    assert len(found["more"]) == 1 and list(found["measured"]) == ["steps", "more", "products", "held"][: 3 + unit]
    (steps,) = found["steps"]
    assert list(steps["steps"]) == ["dense", "SMET 16 x 16, density 0.5"] and steps["products"]["dense"] == "dense"
    assert all(step["seconds"] > 0 for step in steps["steps"].values())
    assert main(["render", str(result), str(page)]) == 0
    text = page.read_text()
    assert shown in text and f"torch's dense ones on {found['machine']['dense']}" in text and "a test run" in text


def test_every_shape_tile_and_density_that_fits_is_a_case() -> None:
    cases = list(_cases(quick=False))
    fit = [(s, t) for s in SHAPES for t in TILES if s[0] % t[0] == s[1] % t[1] == 0]
    assert len(cases) == len(set(cases))
    assert sum(name == "bf16" for name, _ in cases) == len(fit) * len(DENSITIES)
    held = list(_cases(quick=False, held=True))
    assert set(held) < set(cases) and {name for name, _ in held} == {"bf16"}


def test_whole_steps_are_those_of_tiles_that_divide() -> None:
    made = list(whole.settings(quick=False))
    assert {setting.title for setting in made} == {"60m", "8 layers of 350m", "2 layers of 1b"}
    assert all(setting.micro_batch * setting.sequence == 2048 for setting in made)
    for setting in (*made, *whole.more(quick=False)):
        for side in setting.sides:
            block = side.block or (1, 1)
            dataclasses.replace(setting, block=block, density=side.density).config(Path("unused"))


def test_a_part_is_measured_again_and_the_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert main(["tiles", "--quick", "--part", "products", "--json", str(result)]) == 0
    first = json.loads(result.read_text())
    assert main(["tiles", "--quick", "--part", "steps", "--json", str(result)]) == 0
    both = json.loads(result.read_text())
    assert both["products"] == first["products"] and len(both["steps"]) == 1 and both["more"] == []
    assert list(both["measured"]) == ["products", "steps"]
    result.write_text(json.dumps({**both, "threads": 7}))
    capsys.readouterr()
    assert main(["tiles", "--quick", "--part", "steps", "--json", str(result)]) == 2
    assert "was measured on another machine, or in another way" in capsys.readouterr().err


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiles", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads is 0, expected 1 or more\n"
