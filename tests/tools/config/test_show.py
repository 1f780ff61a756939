"""Where values come from, and in what two run files differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.changes import changes
from pretrain.config import load_config
from tools.config.__main__ import main
from tools.config.origin import resolve

BASE = """# a base
model: {vocab_size: 128, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
sparsity:
  method: smet
  growth: gradient
  density: 0.5
data:
  seq_length: 16
  train: a
optimizer:
  lr: 1.0e-3
"""
RUN = """base: parts/base.yaml
sparsity:
  method: set
model:
  num_key_value_heads: 0
data:
  train:
    - path: b
      weight: 2
train:
  steps: 4
  global_batch_size: 2
  output_dir: null
"""
OVERRIDES = ["train.output_dir=run", "deepspeed.zero_optimization.reduce_bucket_size=1000"]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.yaml").write_text(BASE)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def test_every_value_says_what_gave_it(run_file: Path) -> None:
    base = f"base {run_file.parent}/parts/base.yaml"
    found = {name: str(origin) for name, origin in resolve(run_file, OVERRIDES).origins.items()}
    assert found["model.vocab_size"] == f"{base}:2", "within braces"
    assert found["sparsity.density"] == f"{base}:6"
    assert found["sparsity.method"] == f"{run_file}:3"
    assert found["data.train"] == f"{run_file}:7", "lists are replaced as a whole"
    assert found["train.output_dir"] == "override"
    assert found["deepspeed.zero_optimization.reduce_bucket_size"] == "override"
    assert found["sparsity.bias_correction"] == "preset of sparsity.method"
    assert found["sparsity.growth"] == f"{base}:5", "the new method's preset says nothing of growth"
    assert found["train.precision"] == "default"
    assert found["model.head_dim"] == "derived"
    assert found["model.num_key_value_heads"] == f"derived from 0 ({run_file}:5)"


def test_what_a_stronger_layer_outdoes_gives_nothing(run_file: Path) -> None:
    found = resolve(run_file, [*OVERRIDES, "sparsity.method=rigl"]).origins
    assert str(found["sparsity.method"]) == "override"
    assert str(found["sparsity.growth"]) == "preset of sparsity.method", "not the base's, which said the same"


def test_what_is_shown_loads_to_the_same_settings(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*OVERRIDES, f"data.validation={'long/' * 60}name", f"data.tokenizer='{'a # b ' * 39}c'"]
    assert main(["show", str(run_file), *overrides]) == 0
    text = capsys.readouterr().out
    shown = run_file.with_name("shown.yaml")
    shown.write_text(text)
    assert load_config(shown) == load_config(run_file, overrides)
    assert "32 tokens per step" in text and "  # default" in text
    assert main(["show", str(run_file), *overrides, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["values"]["train.steps"] == {
        "value": 4, "from": {"kind": "file", "file": str(run_file), "line": 11, "given": None},
    }  # fmt: skip


def test_texts_that_are_folded_have_no_comment_within(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["a\nb\n", "x" * 60 + " " + "y" * 90, 'quo"ted', "tab\t", "\u00e4\u00f6\u00fc # no comment", "- "]
    run_file.write_text(
        RUN.replace("output_dir: null", "output_dir: run").replace("data:", "data:\n  tokenizer: t.model")
        + f"evaluation: {json.dumps({'prompts': prompts, 'prompts_tokens': 4})}\n"
    )
    assert main(["show", str(run_file)]) == 0
    again = run_file.with_name("shown.yaml")
    again.write_text(capsys.readouterr().out)
    assert load_config(again).to_dict() == load_config(run_file).to_dict()
    assert load_config(again).evaluation.prompts == tuple(prompts)


@pytest.mark.parametrize(("permute", "fits"), [("none", True), ("inputs", False)])
def test_what_permuted_features_follow_from_is_no_matter_of_a_branch(permute: str, fits: bool) -> None:
    old, new = ({"sparsity": {"permute": permute, "seed": seed, "topology_ranges": seed + 1}} for seed in (0, 1))
    assert [change.fits for change in changes(old, new)] == [fits, fits]


def test_a_difference_is_one_of_resolved_settings(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file.write_text(RUN.replace("output_dir: null", "output_dir: run"))
    folder = run_file.with_name("run")
    folder.mkdir()
    load_config(run_file, ["optimizer.lr=0.01", "train.steps=8", "sparsity.density=0.25"]).save(folder / "config.yaml")
    assert main(["diff", str(run_file), str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "optimizer.lr: 0.001 -> 0.01   (in a branch only)",
        "sparsity.density: 0.5 -> 0.25   (another run)",
        "train.steps: 4 -> 8",
    ]
    assert main(["diff", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", str(run_file), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[2] == {"key": "train.steps", "a": 4, "b": 8, "on_resume": True}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "configs/quickstrat.yaml"], "did you mean 'quickstart.yaml'"),
        (["show", "configs/quickstart.yaml", "train.stesp=3"], "did you mean 'steps'"),
        (["show", "configs"], "configs is a folder without config.yaml"),
        (["diff", "configs/quickstart.yaml", "docs"], "docs is a folder without config.yaml"),
    ],
)
def test_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
