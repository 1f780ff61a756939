"""A writer that cannot be had is a line before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.__main__ import main as launch
from pretrain import writers
from pretrain.__main__ import main as pretrain
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.exit_codes import USER
from pretrain.lookup import require_found
from pretrain.writers import Kind, require_there
from tests.pages import ROOT

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture
def without_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = writers.WRITERS["trackio"]
    monkeypatch.setitem(writers.WRITERS, "trackio", Kind(kind.address, "no_such_package"))


@pytest.mark.parametrize("start", [["--local"], ["--local", "--dry-run"]])
def test_launch_starts_nothing(
    start: list[str], without_trackio: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [QUICKSTART, "logging.writers=[trackio]", f"train.output_dir={tmp_path}/run", *start]
    assert launch(given) == USER
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: logging.writers[0] is trackio, and the package no_such_package is not installed")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_so(without_trackio: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain([QUICKSTART, "logging.writers=[trackio]", "--dry-run"]) == USER
    assert "python -m pip install no_such_package" in capsys.readouterr().err


def test_every_writer_that_is_wrong_is_named(without_trackio: None) -> None:
    given = (
        "[trackio, tests.pretrain.own_writers:Notebok, {name: tests.pretrain.own_writers:Notebook, options: {a: 1}}]"
    )
    config = load_config(QUICKSTART, [f"logging.writers={given}"])
    with pytest.raises(ConfigError) as caught:
        require_there(config.logging.writers)
    missing, unknown, options = caught.value.problems
    assert missing.startswith("logging.writers[0] is trackio")
    assert "logging.writers[1] is 'tests.pretrain.own_writers:Notebok'" in unknown and "'Notebook'" in unknown
    assert options.startswith("logging.writers[2].options do not fit") and "argument" in options
    with pytest.raises(ConfigError):
        require_found(config)


@pytest.mark.parametrize("monitor", ["wandb", "tensorboard", "csv_monitor", "comet"])
def test_deepspeed_s_own_monitors_are_a_line_that_names_what_takes_their_place(monitor: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [f"deepspeed.{monitor}.enabled=true"])
    (problem,) = caught.value.problems
    assert problem.startswith(f"deepspeed.{monitor} is DeepSpeed's own monitor") and "logging.writers" in problem


def test_a_run_that_had_one_goes_on_without(tmp_path: Path) -> None:
    """Settings of an earlier version are compared as if it had not been there: it trains nothing."""
    from pretrain.changes import completed

    config = load_config(QUICKSTART)
    saved = json.loads(json.dumps(config.to_dict()))
    saved["deepspeed"] = {"tensorboard": {"enabled": True}, "dataloader_drop_last": True}
    saved["logging"] = {"interval": 10, "tensorboard": True, "traffic": True}
    found = completed(saved, config.model.family)
    assert found["deepspeed"] == {} and found["logging"]["writers"] == [{"name": "tensorboard", "options": {}}]
