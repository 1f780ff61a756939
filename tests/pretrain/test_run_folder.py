"""A run folder goes on with the run it holds, also one that an earlier version began."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pretrain.config import config_from_dict
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder
from tests.pretrain.runs import settings


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
