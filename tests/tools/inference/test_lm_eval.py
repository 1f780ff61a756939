"""``evaluate --lm-eval``: a task of one's own, without the hub, through lm-evaluation-harness on the export."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.inference.conftest import Trained
from tools.evaluate import main as evaluate
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
"""


def task(folder: Path) -> str:
    """A folder with a task of six questions; what to give to ``--lm-eval-args``."""
    lines = folder / "questions.jsonl"
    rows = [{"text": "the sparse", "choices": [" weight", " zzzz qqqq xxxx"], "answer": n % 2} for n in range(6)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(TASK % lines)
    return f"--include_path {folder} --batch_size 2 --device cpu"


@pytest.mark.slow
def test_a_local_task_is_asked_of_the_export(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    run, more = str(trained.folder / "fp32-zero2"), task(tmp_path)
    arguments = [run, "--lm-eval", "which_is_likelier", "--lm-eval-args", more, "--json"]
    assert evaluate(arguments) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["model"] == run
    assert report["results"]["which_is_likelier"]["acc,none"] == 0.5, "every other answer is right"
    assert not list(trained.folder.rglob("export")), "what was exported for it is gone"
    assert evaluate([run, "--lm-eval", "no_such_task"]) == 2
    assert "error: lm_eval ended with exit code" in capfd.readouterr().err


def test_a_missing_package_is_one_line(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == harness.PACKAGE else whole(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert evaluate([str(trained.folder / "fp32-zero2"), "--lm-eval", "piqa"]) == 2
    assert capsys.readouterr().err == (
        "error: --lm-eval needs lm_eval, which is not installed here; pip install 'smet-train[eval]'\n"
    )


def test_options_that_are_given_here_are_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(harness.PACKAGE) is None:
        pytest.skip("lm_eval is not installed")
    arguments = [str(trained.folder / "fp32-zero2"), "--lm-eval", "piqa", "--lm-eval-args", "--limit 2 --model=vllm"]
    assert evaluate(arguments) == 2
    assert "--lm-eval-args has --model=vllm, which is given here" in capsys.readouterr().err


def test_measures_are_told_a_line_each() -> None:
    results = {"results": {"a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.125, "f1,x": 1.0}}}
    assert harness.describe(results) == "a: acc 0.2500 +- 0.1250\na: f1 1.0000"
