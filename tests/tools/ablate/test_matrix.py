"""Matrix files: every cell of those in configs/ is a valid run, and differs from the others as it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.yaml_text import read_yaml
from pretrain.errors import ConfigError
from tests.tools.ablate import matrices
from tools.ablate.matrix import Matrix, load_matrix, slug

FILES = sorted((Path(__file__).parent.parent.parent.parent / "configs" / "ablations").glob("*.yaml"))


REMEDIES = [path for path in FILES if path.stem.startswith("llama")]


@pytest.fixture(scope="module", params=REMEDIES, ids=lambda path: path.stem)
def matrix(request: pytest.FixtureRequest) -> Matrix:
    return load_matrix(request.param)


def test_every_file_has_cells():
    names = [
        "afterwards",
        "budget",
        "gpu",
        "granularity",
        "llama-quick",
        "llama",
        "moments",
        "rewiring",
        "settings",
        "tiles",
    ]
    assert [path.stem for path in FILES] == names
    assert all(load_matrix(path).cells for path in FILES)


def test_pages_of_one_text_have_the_same_text_and_rates():
    """Matrix files are frozen once their cells ran, so none can be made of another."""
    known = {path.stem: read_yaml(path) for path in FILES}
    for name in ("afterwards", "settings", "rewiring", "moments", "granularity"):
        for read in (lambda file: file["text"], lambda file: file["tune"], lambda file: file["run"]["data"]):
            assert read(known[name]) == read(known["budget"]), name


def test_masks_alone_tell_the_methods_of_tiles_apart():
    matrix = load_matrix(FILES[-1])
    masks = ("block", "balance", "permute", "prune_start", "seed")
    settings = [cell.config(Path("x")).to_dict() for cell in matrix.cells]
    found = [{key: value for key, value in each["sparsity"].items() if key not in masks} for each in settings]
    assert all(each == found[0] for each in found)
    first = settings[0]
    active = 0.25 * 3 * (4 * 128 * 128 + 3 * 128 * 352)
    assert first["train"]["steps"] * first["train"]["global_batch_size"] * first["data"]["seq_length"] >= 10 * active
    claimed = {(entry["method"], entry["against"]) for entry in matrix.content["hypotheses"]}
    for pair in claimed:
        assert all(
            {c.seed for c in matrix.cells if c.method == name} == set(range(5)) or "both" in name for name in pair
        )


def test_nothing_but_sparsity_density_rate_and_seed_differs_between_methods(matrix: Matrix):
    size = next(iter(matrix.content["sizes"]))
    cells = [cell for cell in matrix.cells if cell.kind == "run" and cell.size == size and cell.seed == 0]
    base = {key: value for key, value in cells[0].config(Path("x")).to_dict().items() if key != "sparsity"}
    for cell in cells:
        settings = cell.config(Path("x")).to_dict()
        if "run" in matrix.content["methods"][cell.method]:
            assert settings["sparsity"]["method"] == "dense", "no sparse method has settings of its own"
            continue
        assert settings["sparsity"]["fan_in_init"] or settings["sparsity"]["density"] == 1.0
        rest = {key: value for key, value in settings.items() if key != "sparsity"}
        rest["optimizer"] = {**rest["optimizer"], "lr": base["optimizer"]["lr"]}
        assert rest == base


def test_a_method_can_bring_settings_of_other_sections(matrix: Matrix):
    for cell in matrix.cells:
        if cell.method == "dense, wide start":
            assert cell.config(Path("x")).model.initializer_range == 0.04
        else:
            assert cell.config(Path("x")).model.initializer_range == 0.02


def test_every_method_switches_what_its_name_says(matrix: Matrix):
    found = {cell.method: cell.config(Path("x")).sparsity for cell in matrix.cells if cell.kind == "run"}
    assert found.keys() == matrix.content["methods"].keys()
    interval = found["SMET"].update_interval
    remedies = {
        name: (s.bias_correction, s.warmup_steps, s.warmup_scope, s.lr_exponent, s.update_interval, s.growth)
        for name, s in found.items()
    }
    assert remedies["SET naive"] == ("global", 0, "regrown", 0.0, interval, "random")
    assert remedies["SET + local correction"] == ("local", 0, "regrown", 0.0, interval, "random")
    assert remedies["SET + warm-up of regrown"] == ("global", interval, "regrown", 0.0, interval, "random")
    assert remedies["SET + warm-up of all"] == ("global", interval, "all", 0.0, interval, "random")
    assert remedies["SET + density LR"] == ("global", 0, "regrown", 0.5, interval, "random")
    assert remedies["SMET"] == ("local", interval, "regrown", 0.5, interval, "random")
    assert remedies["SMET-RigL"] == ("local", interval, "regrown", 0.5, interval, "gradient")
    assert remedies["RigL naive"] == ("global", 0, "regrown", 0.0, interval, "gradient")
    assert remedies["static"][4] == remedies["dense"][4] == 0
    assert 0 < found["SMET, short warm-up"].warmup_steps < interval
    assert found["SMET, protected"].protect_rounds == 1 and found["SMET"].protect_rounds == 0
    assert (found["SMET, e = 0"].lr_exponent, found["SMET, e = 1"].lr_exponent) == (0.0, 1.0)


def test_spikes_are_left_in_and_the_final_losses_cover_two_sizes(matrix: Matrix):
    assert not any(cell.config(Path("x")).guard.enabled for cell in matrix.cells)
    covered = {(c.size, c.method, c.density) for c in matrix.cells if c.kind == "run"}
    sizes = list(matrix.content["sizes"])
    assert len(sizes) >= 2
    for size in sizes:
        assert (size, "dense", 1.0) in covered
        for method in ("static", "SET naive", "SMET"):
            assert {density for s, m, density in covered if (s, m) == (size, method)} >= {0.5, 0.25, 0.1}


def test_branches_leave_from_a_step_before_an_update_or_from_a_run_without_any(matrix: Matrix):
    cells = [cell for cell in matrix.cells if cell.kind == "branches"]
    assert {cell.method for cell in cells} == {"neutral", "SMET"}
    for cell in cells:
        config = cell.config(Path("x"))
        due = [at % config.sparsity.update_interval == 0 for at in cell.measure["at"]]
        assert all(due) if cell.method == "SMET" else not any(due)
        assert max(cell.measure["at"]) <= config.train.steps


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"cells": [{"sizes": ["huge"], "methods": ["SMET"]}]}, "'huge' is not defined, expected one of tiny"),
        ({"cells": [{"sizes": ["tiny"], "methods": ["SMEET"]}]}, "'SMEET' is not defined"),
        ({"cells": []}, "section cells is missing"),
        ({"rolls": {}}, "rolls is not a known section (did you mean 'roles'?)"),
        ({"methods": {"SMET": {"method": "smet", "warmup": 3}, "SET naive": {}}}, "sparsity.warmup"),
        (
            {"cells": [{"sizes": ["tiny"], "bases": ["SMET"], "variants": ["no update", "naiv"]}]},
            "variant 'naiv' is not defined",
        ),
        (
            {"cells": [{"sizes": ["tiny"], "bases": ["SMET"], "variants": ["naive"]}]},
            "reference 'no update', expected the name of a chosen variant with update: false",
        ),
    ],
)
def test_bad_files_are_told_in_words(tmp_path: Path, changes: dict, expected: str):
    with pytest.raises(ConfigError) as caught:
        load_matrix(matrices.write(tmp_path, **changes))
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_names_become_folders():
    assert slug("small d0.1 SMET, e = 1 s0") == "small-d0.1-smet-e-1-s0"
