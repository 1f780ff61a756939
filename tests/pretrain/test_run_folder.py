"""A run folder goes on with the run it holds, also one that an earlier version began."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.callbacks.base import Callback, Record
from pretrain.config import config_from_dict
from pretrain.errors import CheckpointError
from pretrain.run import prepared
from pretrain.run_folder import RunFolder
from pretrain.trainer import Trainer
from tests.distributed import run_ranks
from tests.pretrain.runs import layout_of, settings, write_corpus


def test_keys_that_came_later_had_their_defaults_before(tmp_path: Path) -> None:
    given = settings("corpus", tmp_path / "run")
    config = config_from_dict(given)
    old = config.to_dict()
    for name in ("curriculum", "reset_attention", "eos_id"):
        del old["data"][name]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    folder = RunFolder(tmp_path / "run")
    folder.require_same_run(config)
    given["data"]["reset_attention"] = True
    with pytest.raises(CheckpointError, match=r"holds another run \(data.reset_attention: False -> True\)"):
        folder.require_same_run(config_from_dict(given))


class FullDisk(Callback):
    """From step 3 on, the main rank's files cannot be written."""

    name = "full disk"

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step == 3 and trainer.layout.is_main:
            trainer.folder.path = trainer.folder.path / "gone"


def train_on_a_full_disk(job: dict[str, Any]) -> tuple[str, int]:
    config = config_from_dict(job)
    with contextlib.redirect_stdout(io.StringIO()), prepared(config, layout_of(config)) as trainer:
        trainer.callbacks.insert(0, FullDisk())
        try:
            trainer.fit()
        except CheckpointError as error:
            return str(error), trainer.step
    return "", trainer.step


def test_a_run_that_saves_nothing_before_its_end_says_so(tmp_path: Path) -> None:
    def said(step: int = 0, interval: int = 0, stop_at: int = 0) -> bool:
        changes = {"train__steps": 14, "train__stop_at": stop_at, "checkpoint__interval": interval}
        config = config_from_dict(settings("corpus", tmp_path / "run", **changes))
        return any("nothing is saved before step" in line for line in RunFolder(tmp_path / "run").remarks(config, step))

    assert (
        said() and said(interval=14) and said(interval=20) and said(step=8, interval=7) and said(interval=7, stop_at=6)
    )
    assert not said(interval=7) and not said(step=6, interval=7) and not said(step=14)


def test_a_disk_that_fills_between_saves_stops_all_ranks_with_one_line(tmp_path: Path) -> None:
    job = settings(write_corpus(tmp_path / "corpus"), tmp_path / "run", evaluation__interval=0)
    first, second = run_ranks(train_on_a_full_disk, 2, job)
    assert first == second and first[1] == 3
    assert "gone cannot be written (No such file or directory); free space or mend the disk" in first[0]
