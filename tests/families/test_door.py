"""A model family is named in a run file: its keys are its own, and files of others import nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain.__main__ import main as pretrain_main
from pretrain.changes import completed, known
from pretrain.config import config_from_dict, load_config
from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.models import family_of, inventory_of
from pretrain.models.soundness import contradictions
from pretrain.parallel.part import Builder
from pretrain.parallel.trial import require_cut, require_saved
from tests.damage import mend_checkpoint
from tests.families.runs import FAMILY, MODEL, SPARSITY, run_file
from tests.families.tiny import FAMILY as FAMILY_OBJECT
from tests.pages import ROOT, blocks
from tests.pretrain.test_planted_checkpoint import model_of
from tests.tools.checkpoints.models import make_hf
from tools.import_hf import main as import_main


def refused(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


@pytest.fixture
def path(tmp_path: Path) -> str:
    return run_file(tmp_path, "run", "data/corpus", {"zero_stage": 1})


def test_the_keys_under_model_are_the_familys(path: str) -> None:
    config = load_config(path)
    assert type(config.model).__module__ == "tests.families.tiny.config" and config.model.gated == (0, 2)
    assert load_config(path, ["model.context=64"]).model.context == 64
    assert config_from_dict(config.to_dict(), (FAMILY,)) == config


def test_unknown_keys_and_bad_values_are_all_reported_at_once_with_the_nearest_name(path: str) -> None:
    found = refused(path, "model.feature=4", "model.hidden_size=8", "model.heads=5", "model.depth=x", "train.steps=0")
    assert "model.feature is not a known key (did you mean 'features'?)" in found
    assert any(text.startswith("model.hidden_size is not a known key") for text in found)
    assert any(text.startswith("model.depth is 'x' (str), expected a whole number") for text in found)
    assert any(text.startswith("train.steps is 0") for text in found)
    assert refused(path, "model.heads=5") == ["model.features is 32, expected a multiple of model.heads 5"]


def test_layouts_are_checked_by_the_familys_names_and_sizes(path: str) -> None:
    found = refused(path, "parallel.tensor=4", "model.inner=50")
    assert any(text.startswith("model.inner is 50, expected a multiple of parallel.tensor 4") for text in found)
    assert any("at most model.depth 3" in text for text in refused(path, "parallel.pipeline=4"))
    assert any("model.context 8" in text for text in refused(path, "model.context=8"))
    assert any("below model.words 98" in text for text in refused(path, "data.eos_id=98"))
    (problem,) = refused(path, "sparsity.block=[1, 5]")
    assert "stack.*.mix.give 32 x 32 (transposed)" in problem and "stack.*.think.narrow 48 x 32 (transposed)" in problem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lama", "model.family is 'lama', expected one of llama, or package.module:name (did you mean 'llama'?)"),
        ("tests.families.missing:FAMILY", "module tests.families.missing cannot be imported (ModuleNotFoundError"),
        ("tests.families.tiny:FAMILIE", "tests.families.tiny has no 'FAMILIE' (did you mean 'FAMILY'?)"),
        ("tests.families.tiny:TinyConfig", "a class, expected a pretrain.models.family.Family"),
        ("[1]", "model.family is '[1]', expected one of llama"),
    ],
)
def test_a_family_that_is_none_is_one_line_beside_the_other_problems(path: str, name: str, said: str) -> None:
    found = refused(path, f"model.family={name}", "train.seed=-1")
    assert len(found) == 2 and any(said in text for text in found) and any("train.seed" in text for text in found)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("UNLISTED", "has a parameter stack.1.mix.give.bias, which the inventory of model.family 'tests.families."),
        ("UNLISTED_LAYER", "has a parameter stack.1.mix.give.weight, which the inventory of model.family"),
        ("RESHAPED", "stack.0.think.gate.weight has the shape [48, 32], the inventory of model.family"),
    ],
)
def test_an_inventory_that_contradicts_the_model_is_one_line(
    path: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(path, [f"model.family=tests.families.broken:{name}"])
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    with pytest.raises(ConfigError) as caught:
        Builder(config, alone).whole()
    assert said in str(caught.value)
    assert pretrain_main([path, "--dry-run", f"model.family=tests.families.broken:{name}"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NO_FOLDER", ["tests.families.model cannot be imported (ModuleNotFoundError", "tests.families.hf cannot be"]),
        ("SAVES_NOTHING_KNOWN", ["saved() gives None for stack.2, expected bytes per token", "gives None for last"]),
        ("SAVES_LESS", ["saved() gives -1.0 for stack.2, expected bytes per token", "saved() gives -1.0 for last"]),
        ("SAVED_FAILS", ["saved() fails in", "broken.py:", "(KeyError: 'n_embd'); mend it there"]),
        ("WEIGHTS_FAIL", ["weights() fails in"]),
        ("WEIGHTS_ARE_TUPLES", ["weights() lists ('read.weight', (98, 32)), expected Weight(name="]),
        ("SHAPE_FAILS", ["shape() fails in"]),
        ("SHAPE_IS_A_DICT", ["shape() gives a dict, expected a Shape"]),
        ("FOUR_LAYERS", ["weights() lists 3 blocks of layers, shape().layers is 4, expected the same"]),
        ("WIDER", ["read.weight has the shape (98, 32), shape() says vocabulary x width = (98, 40)", "guess.weight"]),
        ("TIED", ["weights() lists 1 of role HEAD, expected 0 where shape().tied is True"]),
        ("OTHER_HEAD", ["shape().head is 'lm_head', expected the block of the weight of role HEAD"]),
        ("OTHER_KEYS", ["shape().keys calls layers 'depht', expected a key of the model section (did you mean 'depth'",
                        "shape().keys calls longest None"]),
        ("OTHER_FUNCTION", ["function has 'headz', expected keys of the model section (did you mean 'heads'?)"]),
        ("NO_DEVIATION", ["shape().deviation is 0, expected a positive number"]),
        ("TEXT", ["problems() of tests.families.broken.TextConfig gives 'all is lost' (str), expected a list of"]),
        ("FAILING", ["FailingConfig, which 'model' is made of, fails in", "(ZeroDivisionError: integer"]),
        ("WRONG_BIAS", ["stack.0.mix.ask.bias has role SHIFT beside a COLUMN weight, expected role COLUMN_SHIFT",
                        "stack.1.", "stack.2."]),
        ("GIVE_AS_COLUMN", ["the model makes stack.0.mix.give.weight by parts.row, its inventory lists it with role"
                            " COLUMN; expected parts.column, or another role"]),
    ],
)  # fmt: skip
def test_what_a_third_person_may_get_wrong_is_a_line_each(
    path: str, name: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain_main([path, "--dry-run", f"model.family=tests.families.broken:{name}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3 and all(line.startswith("error: ") for line in lines), lines
    assert all(any(text in line for line in lines) for text in said), lines


def test_roles_that_only_shards_break_are_refused_where_there_are_shards(path: str) -> None:
    config = load_config(path)
    assert contradictions(config.model, tensor=2) == []
    llama = load_config(ROOT / "configs" / "9m.yaml").model
    assert contradictions(llama, tensor=2) == []
    narrow = load_config(path, ["model.family=tests.families.broken:NARROW_NORM"]).model
    (line,) = contradictions(narrow, tensor=2)
    assert "stack.0.between.scale of role SCALE has 8 elements, expected the stream's 32" in line


def test_a_model_that_uses_a_column_product_as_a_row_product_does_not_compute_in_two(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its inventory and its parts agree, and in one process it trains."""
    folder = tmp_path / "misused"
    folder.mkdir()
    tiny = ROOT / "tests" / "families" / "tiny"
    model = (tiny / "model.py").read_text()
    assert model.count("self.give = parts.row(") == 1
    (folder / "model.py").write_text(model.replace("self.give = parts.row(", "self.give = parts.column("))
    (folder / "hf.py").write_text((tiny / "hf.py").read_text())
    (folder / "__init__.py").write_text(
        "from dataclasses import replace\nfrom tests.families.broken import GIVE_AS_COLUMN\n"
        "FAMILY = replace(GIVE_AS_COLUMN, package=__name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert pretrain_main([path, "--dry-run", "model.family=misused:FAMILY"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'misused:FAMILY' does not compute on 2 tensor-parallel ranks (RuntimeError: " in line


def test_a_familys_own_test_can_ask_what_only_computing_tells(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(path)
    Path(path).rename(tmp_path / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    exec(blocks("docs/families.md", "python")[0], {})
    require_cut(config, ranks=4)
    require_saved(load_config(ROOT / "configs" / "9m.yaml"))
    with pytest.raises(ConfigError, match=r"saved\(\) gives 0 bytes per token for stack.0, autograd keeps [1-9]"):
        require_saved(load_config("tiny.yaml", ["model.family=tests.families.broken:SAVES_ZERO"]))


def test_blocks_in_another_order_than_the_inventorys_are_one_line(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ["model.family=tests.families.broken:REORDERED", "parallel.pipeline=2", "--world-size", "2"]
    assert pretrain_main([path, "--dry-run", *broken]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "are read, stack.0, stack.1, stack.2, last, guess, its inventory lists read, stack.1, stack.0" in line


def test_a_family_whose_config_is_none_is_said_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="expected a dataclass that is a FamilyConfig"):
        replace(FAMILY_OBJECT, config=dict)


def test_settings_from_elsewhere_import_nothing(path: str) -> None:
    """A checkpoint's settings are data: compared where the run's own file names the same family, else left as text."""
    saved = load_config(path).to_dict()
    saved["model"]["family"] = "this.module.is_not_there:FAMILY"
    with pytest.raises(ConfigError, match="code of its own, which is imported only where you name it yourself"):
        config_from_dict(saved)
    assert completed(saved, FAMILY) == saved and known(saved, FAMILY) is None
    saved["model"]["family"] = FAMILY
    assert known(saved, FAMILY) == load_config(path)
    assert known(saved, "llama") is None


@pytest.mark.parametrize("tool", ["export_hf", "inspect_checkpoint"])
def test_tools_import_no_family_that_only_a_checkpoint_names(tmp_path: Path, tool: str) -> None:
    make_hf(tmp_path / "source")
    assert import_main([str(tmp_path / "source"), str(tmp_path / "imported"), "--density", "0.5"]) == 0
    checkpoint = tmp_path / "imported" / "step-00000000"
    mark = tmp_path / "it-ran"
    (tmp_path / "planted.py").write_text(f"open({str(mark)!r}, 'w')\nFAMILY = 1\n")
    model_of(checkpoint, family="planted:FAMILY")
    mend_checkpoint(checkpoint)
    out = [str(tmp_path / "out")] if tool == "export_hf" else []

    def run(*more: str) -> Any:
        command = [sys.executable, "-m", f"tools.{tool}", str(checkpoint), *out, *more]
        environ = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)

    result = run()
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "planted:FAMILY" in result.stderr and "--family planted:FAMILY" in result.stderr
    assert not mark.exists(), "nothing of it was imported"
    other = run("--family", "llama")
    assert other.returncode == 2 and "--family is llama, expected that of checkpoint" in other.stderr
    assert not mark.exists()
    assert "an int, expected a pretrain.models.family.Family" in run("--family", "planted:FAMILY").stderr
    assert mark.exists(), "who names it on the command line means it"


def test_the_page_shows_a_run_file_that_loads(tmp_path: Path) -> None:
    given = yaml.safe_load(blocks("docs/families.md", "yaml")[0])
    assert given["model"] == MODEL and given["sparsity"]["exclude"] == SPARSITY["exclude"]
    config = load_config(run_file(tmp_path, "run", "data/corpus", {}))
    page = (ROOT / "docs" / "families.md").read_text()
    for role in {weight.role for weight in inventory_of(config.model).weights}:
        assert f"| `{role.name}` |" in page
    folder = family_of(config.model).package.replace(".", "/")
    assert folder in page and {file.name for file in (ROOT / folder).glob("*.py")} == {
        "__init__.py", "config.py", "inventory.py", "model.py", "hf.py",
    }  # fmt: skip
    assert json.dumps(config.to_dict())
