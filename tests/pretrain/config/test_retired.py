"""Keys of earlier releases: their default is a notice, and what means another model now is an error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import config_from_dict, load_config
from pretrain.config.once import note_once
from pretrain.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
OLD = "sparsity.row_parallel=['*o_proj', '*down_proj']"


@pytest.fixture(autouse=True)
def fresh() -> None:
    note_once.cache_clear()


def test_the_default_of_an_old_file_is_a_notice_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load_config(QUICKSTART, [OLD]) == load_config(QUICKSTART, [OLD]) == load_config(QUICKSTART)
    said = [record.getMessage() for record in caplog.records if "row_parallel" in record.getMessage()]
    assert len(said) == 1 and "the model's family says which layers" in said[0]


def test_settings_of_an_old_checkpoint_are_those_of_today() -> None:
    today = load_config(QUICKSTART)
    saved: dict[str, Any] = today.to_dict()
    saved["sparsity"]["row_parallel"] = ["*o_proj", "*down_proj"]
    del saved["model"]["family"]
    assert config_from_dict(saved) == today


@pytest.mark.parametrize("value", ["[]", "['*o_proj']", "'*o_proj'"])
def test_another_value_is_an_error_that_hides_no_other(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [f"sparsity.row_parallel={value}", "sparsity.density=2"])
    assert len(caught.value.problems) == 2
    assert any("sparsity.row_parallel is" in text and "expected no such key" in text for text in caught.value.problems)


def test_tensorboard_s_old_key_is_the_writer_of_today(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    today = load_config(QUICKSTART, ["logging.writers=[tensorboard]"])
    assert load_config(QUICKSTART, ["logging.tensorboard=true"]) == today
    assert load_config(QUICKSTART, ["logging.tensorboard=false"]) == load_config(QUICKSTART)
    said = [record.getMessage() for record in caplog.records if "logging.tensorboard" in record.getMessage()]
    assert ["is taken as logging.writers: [tensorboard]" in text for text in said] == [True, False]
    with pytest.raises(ConfigError, match="logging.tensorboard is 3, expected no such key"):
        load_config(QUICKSTART, ["logging.tensorboard=3"])
