"""Pages of results are what the command makes of the JSON beside them, whose settings are those of the matrix files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.config.load import load_config
from pretrain.config.optimizer import OptimizerConfig
from pretrain.config.yaml_text import read_yaml
from tools.ablate import winners
from tools.ablate.__main__ import main
from tools.ablate.collect import read
from tools.ablate.view import View

ROOT = Path(__file__).parent.parent.parent.parent
DOCS = ROOT / "docs"
RESULTS = DOCS / "results-spikes.json"
PAGES = {
    "results": "budget.yaml",
    "results-afterwards": "afterwards.yaml",
    "results-settings": "settings.yaml",
    "results-rewiring": "rewiring.yaml",
    "results-granularity": "granularity.yaml",
    "results-moments": "moments.yaml",
    "results-spikes": "llama-quick.yaml",
    "results-tiles": "tiles.yaml",
}
"""Page to the matrix file whose cells it tells of."""


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_rendered_from_the_results_beside_it(name: str, tmp_path: Path):
    page = DOCS / f"{name}.md"
    assert main(["render", str(page.with_suffix(".json")), str(tmp_path / page.name)]) == 0
    text = page.read_text()
    assert (tmp_path / page.name).read_text() == text
    linked = re.findall(r"\]\((images/[^)]+)\)", text)
    assert linked and all((DOCS / image).is_file() for image in linked)
    drawn = {path.name: path for path in (tmp_path / "images").iterdir()}
    assert drawn.keys() == {Path(image).name for image in linked}
    for name, path in drawn.items():
        committed = DOCS / "images" / name
        assert committed.stat().st_size < 120_000, f"{name}: pages are loaded over slow lines too"
        assert share_that_differs(path, committed) < 2e-4, f"{name} is not what the command draws now: commit it anew"


def share_that_differs(one: Path, other: Path) -> float:
    """Of two pictures' pixels; a letter is more than a processor's last digit."""
    a, b = (np.asarray(Image.open(path).convert("L"), dtype=int) for path in (one, other))
    return float((abs(a - b) > 32).mean()) if a.shape == b.shape else 1.0


def test_results_that_lack_something_are_told_in_a_users_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = json.loads(RESULTS.read_text())
    for spoiled in ({**results, "cells": [{"name": "a"}]}, {**results, "matrix": 3}, {**results, "cells": [[]]}):
        (tmp_path / "results.json").write_text(json.dumps(spoiled))
        assert main(["render", str(tmp_path / "results.json"), str(tmp_path / "page.md")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "Error" not in line and "NoneType" not in line, line


@pytest.mark.parametrize(("name", "matrix"), PAGES.items())
def test_the_results_are_those_of_the_matrix_as_it_is_now(name: str, matrix: str):
    path = DOCS / f"{name}.json"
    results = read(path)
    assert results["matrix"] == json.loads(json.dumps(read_yaml(ROOT / "configs" / "ablations" / matrix)))
    assert path.stat().st_size < 1_000_000
    assert results["cells"] and len({cell["name"] for cell in results["cells"]}) == len(results["cells"])


def test_defaults_are_what_the_measurements_speak_for():
    measured = read_yaml(ROOT / "configs" / "presets" / "measured.yaml")
    assert measured == winners.preset(View(read(DOCS / f"{name}.json")) for name in PAGES)
    for path in [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "tiles").glob("*.yaml")]:
        config = load_config(path).to_dict()
        for section, keys in measured.items():
            assert {key: config[section][key] for key in keys} == keys, path


def test_sizes_that_have_weight_decay_are_those_that_the_page_names():
    decay = {path.stem: load_config(path).optimizer.weight_decay for path in (ROOT / "configs").glob("*b.yaml")}
    assert {size for size, value in decay.items() if value} == {"3b", "7b", "13b", "70b"} == decay.keys() - {"1b"}
    assert "0 (but 0.1 from 3b up," in (DOCS / "results-afterwards.md").read_text()


@pytest.mark.parametrize("name", ["llama.yaml", "llama-quick.yaml"])
def test_cold_starts_are_looked_for_where_there_are_some(name: str):
    """The run files that the larger experiment stands on have another beta2."""
    given = read_yaml(ROOT / "configs" / "ablations" / name)["run"]["optimizer"]
    assert given.get("beta2", OptimizerConfig.beta2) == 0.999
