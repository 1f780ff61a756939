"""Going on with a run: what is said of the start, of what changed, and of the end; the same data wherever it lies."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt, write_run_file
from tests.pretrain.runs import write_corpus

SMALL = {
    "train__steps": 8,
    "optimizer__warmup_steps": 2,
    "evaluation__interval": 0,
    "checkpoint__interval": 4,
    "checkpoint__keep_last": 0,
}


def story(folder: Path) -> dict[str, Attempt]:
    """One run from its first start through everything that may happen to it. Runs in a rank."""
    run, told = folder / "run", {}
    run.mkdir()
    (run / "train.log").write_text("a log\n")
    (run / "notes").mkdir()
    file = str(folder / "run.yaml")

    def go(name: str, *overrides: str) -> Attempt:
        told[name] = attempt([file, *overrides], str(folder))
        return told[name]

    go("first")
    go("finished")
    longer = ["train.steps=16", f"data.train={folder}/moved", f"data.validation={folder}/moved"]
    go("longer", *longer, "train.stop_at=10")
    go("at its stop", *longer, "train.stop_at=10")
    spelled = [f"data.train={folder}/logs/.././corpus", f"data.validation={folder}/corpus", "train.steps=16"]
    (folder / "logs").mkdir()
    go("spelled otherwise", *spelled, "train.stop_at=11")
    refused = go("other data", *spelled[1:], "train.stop_at=12", f"data.train={folder}/other")
    advice = refused.err.partition("to go on: ")[2].partition(" train ")[2].partition(", or wherever")[0]
    told["as advised"] = attempt(shlex.split(advice), str(folder))
    refused = go("other settings", "train.steps=16", "train.stop_at=13", "optimizer.lr=0.5")
    advice = refused.err.partition("to go on with it: ")[2].partition(" train ")[2].partition("; to branch")[0]
    told["set back"] = attempt(shlex.split(advice), str(folder))
    go("other order", "train.steps=16", "data.seed=7")
    branch = [f"checkpoint.resume={run}/checkpoints/step-00000008", f"train.output_dir={folder}/branch"]
    branch += ["train.steps=16", "optimizer.lr=0.005", "sparsity.lr_exponent=0.25", "train.global_batch_size=4"]
    go("branch", *branch, "train.stop_at=9")
    go("branch again", *branch, "train.stop_at=10")
    go("other validation", "train.steps=16", "train.stop_at=14", f"data.validation={folder}/other")
    shutil.move(run, folder / "elsewhere")
    go("moved run", "train.steps=16", "train.stop_at=15", f"train.output_dir={folder}/elsewhere")
    (folder / "elsewhere" / "config.yaml").rename(folder / "config.yaml")
    go("without its settings", f"train.output_dir={folder}/elsewhere")
    (folder / "config.yaml").rename(folder / "elsewhere" / "config.yaml")
    shutil.rmtree(folder / "elsewhere" / "checkpoints")
    go("without its checkpoints", "train.stop_at=1", f"train.output_dir={folder}/elsewhere")
    go("the home folder", "train.output_dir=~")
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("going")


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Attempt]:
    corpus = write_corpus(folder / "corpus", tokens=3000)
    write_corpus(folder / "other", tokens=3000, seed=1)
    for kind in ("bin", "idx"):
        shutil.copy(f"{corpus}.{kind}", folder / f"moved.{kind}")
    write_run_file(folder / "run.yaml", corpus, folder / "run", **SMALL)
    return run_ranks(story, 1, folder, timeout=300)[0]


def last(told: Attempt) -> str:
    assert told.code == 0, (told.out, told.err)
    return told.out.splitlines()[-1]


def test_a_run_begins_beside_a_log_and_says_where(told: dict[str, Attempt], folder: Path) -> None:
    lines = told["first"].out.splitlines()
    assert lines[0] == f"begins at step 1 of 8 in {folder}/run"
    assert lines[1] == f"{folder}/run holds files of others, which stay as they are: notes, train.log"
    assert not any("train.log" in path for path in told["first"].changed)
    assert last(told["first"]).startswith(f"done: 8 steps, saved in {folder}/run/checkpoints/step-00000008; to see it")


def test_a_finished_run_has_nothing_to_do_and_says_so(told: dict[str, Attempt], folder: Path) -> None:
    said = last(told["finished"])
    assert said.startswith("nothing to do: the run is at step 8 and train.steps is 8; saved in ")
    assert "to train on: " in said and f" train {folder}/run.yaml train.steps=N with N above 8" in said
    assert not any("checkpoints" in path for path in told["finished"].changed)


def test_more_steps_tell_the_jump_and_the_ways_round_it(told: dict[str, Attempt], folder: Path) -> None:
    out = told["longer"].out
    assert "train.steps: 8 -> 16" in out and f"data.train: {folder}/corpus -> {folder}/moved" in out
    assert "  learning rate of the next step: 1.00e-03 -> 6.50e-03\n" in out
    assert "  prune fraction of the next topology update: 0 -> 0.0336 (0 = none)\n" in out
    assert f"checkpoint.resume={folder}/run/checkpoints/step-00000008 train.output_dir=NEW optimizer.schedule=c" in out
    assert "optimizer.lr=0.001 sparsity.update_interval=0" in out
    events = [json.loads(line) for line in (folder / "elsewhere" / "events.jsonl").read_text().splitlines()]
    noted = [event for event in events if event["kind"] == "settings"]
    assert noted[0]["changed"]["train.steps"] == [8, 16] and noted[0]["learning_rate"][0] == pytest.approx(1e-3)


def test_a_change_is_said_once(told: dict[str, Attempt]) -> None:
    assert "changed since" in told["longer"].out and "changed since" not in told["at its stop"].out


def test_a_stop_names_the_command_that_goes_on(told: dict[str, Attempt], folder: Path) -> None:
    command = f" train {folder}/run.yaml train.steps=16 data.train={folder}/moved data.validation="
    for name, begin in (
        ("longer", "stopped after step 10 of 16 (train.stop_at); saved"),
        ("at its stop", "nothing"),
    ):
        assert last(told[name]).startswith(begin) and command in last(told[name]).partition("; to go on: ")[2]
        assert last(told[name]).endswith(f"{folder}/moved train.stop_at=0")


def test_the_same_data_elsewhere_or_spelled_otherwise_goes_on(told: dict[str, Attempt], folder: Path) -> None:
    assert f"resumed from {folder}/run/checkpoints/step-00000010 after step 10" in told["spelled otherwise"].out
    assert f"resumed from {folder}/elsewhere/checkpoints/step-00000014 after step 14" in told["moved run"].out


def test_other_data_is_refused_and_the_advice_goes_on(told: dict[str, Attempt], folder: Path) -> None:
    said = told["other data"].sole_error()
    assert said.startswith(f"checkpoint {folder}/run/checkpoints/step-00000011 was trained on other data (data.train: ")
    assert "its content counts, not its place; another train.output_dir begins at step 1" in said
    assert f"resumed from {folder}/run/checkpoints/step-00000011 after step 11" in told["as advised"].out
    assert last(told["as advised"]).startswith("stopped after step 12 of 16")


def test_other_settings_are_refused_and_the_advice_goes_on(told: dict[str, Attempt], folder: Path) -> None:
    said = told["other settings"].sole_error()
    assert "already holds another run (optimizer.lr: 0.01 -> 0.5)" in said
    assert f"checkpoint.resume={folder}/run/checkpoints/step-00000012 train.output_dir=NEW; another" in said
    assert "resumed from" in told["set back"].out and "stopped after step 13 of 16" in told["set back"].out
    said = told["other order"].sole_error()
    assert "(data.seed: 0 -> 7)" in said and "branch" not in said, "no branch can have another order"


def test_a_branch_tells_every_setting_that_differs_and_goes_on_by_the_same_command(
    told: dict[str, Attempt], folder: Path
) -> None:
    changed = next(line for line in told["branch"].out.splitlines() if line.startswith("changed since step-00000008: "))
    for one in ("optimizer.lr: 0.01 -> 0.005", "sparsity.lr_exponent: 0.5 -> 0.25", "train.global_batch_size: 8 -> 4"):
        assert one in changed
    assert "learning rate of the next step: 1.00e-03 -> 3.25e-03" in told["branch"].out
    out = told["branch again"].out
    assert f"{folder}/branch began from {folder}/run/checkpoints/step-00000008 before, and goes on from its own" in out
    assert f"resumed from {folder}/branch/checkpoints/step-00000009 after step 9" in out


def test_other_validation_data_is_said(told: dict[str, Attempt]) -> None:
    assert "warning: data.validation holds other data than before (fingerprint " in told["other validation"].out


def test_checkpoints_without_settings_are_not_trained_over(told: dict[str, Attempt], folder: Path) -> None:
    said = told["without its settings"].sole_error()
    assert said.startswith(f"output folder {folder}/elsewhere has checkpoints and deepspeed.json and ")
    assert "but no config.yaml" in said


def test_a_run_that_left_no_checkpoint_begins_again_and_says_so(told: dict[str, Attempt]) -> None:
    out = told["without its checkpoints"].out
    assert "begins at step 1 of 8 in" in out
    assert "an earlier start came to step 15 there, and left no checkpoint: it is done again" in out


def test_the_home_folder_is_no_run_folder(told: dict[str, Attempt]) -> None:
    said = told["the home folder"].err
    assert told["the home folder"].code == 2 and "train.output_dir" in said
