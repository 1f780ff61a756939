"""``evaluate --lm-eval``: a task of one's own, without the hub, through lm-evaluation-harness on the export."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tools.checkpoints.models import make_hf
from tests.tools.inference.runs import quietly
from tools.evaluate import main as evaluate
from tools.export_hf import main as export_model
from tools.import_hf import main as import_model
from tools.inference import harness

TASK = """\
task: which_is_likelier
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: brier_score
    aggregation: brier_score
    higher_is_better: false
"""


def task(folder: Path) -> str:
    """A folder with a task of six questions; what to give to ``--lm-eval-args``."""
    lines = folder / "questions.jsonl"
    rows = [{"text": "the sparse", "choices": [" weight", " zzzz qqqq xxxx"], "answer": n % 2} for n in range(6)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(TASK % lines)
    return f"--include_path {folder} --batch_size 2 --device cpu"


@pytest.fixture
def checkpoint(tmp_path: Path, model: str) -> Path:
    """Of a model that was never trained, with a tokenizer."""
    make_hf(tmp_path / "model", vocab_size=512, max_position_embeddings=64)
    shutil.copy(model, tmp_path / "model" / "tokenizer.model")
    quietly(import_model, tmp_path / "model", tmp_path / "imported", "--density", 0.5)
    return tmp_path / "imported"


@pytest.mark.slow
def test_a_local_task_is_asked_of_the_export(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """About a minute, most of it for the harness to import, twice."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    run, more = str(checkpoint), task(tmp_path)
    arguments = [run, "--lm-eval", "which_is_likelier", "--lm-eval-args", more, "--json"]
    assert evaluate(arguments) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["model"] == run
    assert report["results"]["which_is_likelier"]["acc,none"] == 0.5, "every other answer is right"
    assert not list(tmp_path.rglob("export")), "what was exported for it is gone"
    quietly(export_model, run, tmp_path / "sparse", "--sparse")
    assert evaluate([str(tmp_path / "sparse"), *arguments[1:]]) == 0
    sparse = json.loads(capfd.readouterr().out)
    assert sparse["results"] == report["results"] and 0 < report["results"]["which_is_likelier"]["brier_score,none"] < 2


def test_a_missing_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == harness.PACKAGE else whole(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert evaluate([str(tmp_path), "--lm-eval", "piqa"]) == 2
    assert capsys.readouterr().err == (
        "error: --lm-eval needs lm_eval, which is not installed here; pip install 'smet-train[eval]'\n"
    )


def harness_that(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of its name that ends with ``code``."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tmp_path / "lm_eval" / "__main__.py").write_text(f"raise SystemExit({code})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_harness_that_fails_or_finds_nothing_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness_that(3, tmp_path, monkeypatch)
    (tmp_path / "config.json").touch()  # files that are exported already
    assert evaluate([str(tmp_path), "--lm-eval", "piqa"]) == 2
    assert capfd.readouterr().err == "error: lm_eval ended with exit code 3; what it said stands above\n"


def test_options_that_are_given_here_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert evaluate([str(tmp_path), "--lm-eval", "piqa", "--lm-eval-args", "--limit 2 --model=vllm"]) == 2
    assert "--lm-eval-args has --model=vllm, which is given here" in capsys.readouterr().err


def test_measures_are_told_a_line_each() -> None:
    results = {"results": {"a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.125, "f1,x": 1.0}}}
    assert harness.describe(results) == "a: acc 0.2500 +- 0.1250\na: f1 1.0000"
