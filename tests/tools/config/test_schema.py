"""configs/schema.json: made from the dataclasses, named by every run file, and of one mind with the loader."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pretrain.config import config_from_dict, load_config
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import ConfigError
from tools.config.schema import schema

CONFIGS = Path("configs")
COMMITTED = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
CHECKED = jsonschema.Draft7Validator(COMMITTED)
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "ablations")
RUN = {
    "model": {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    },
    "data": {"train": "corpus", "seq_length": 16},
    "optimizer": {"lr": 1e-3},
    "train": {"steps": 4, "global_batch_size": 2, "output_dir": "run"},
}  # fmt: skip


def changed(section: str, key: str | None, value: Any) -> dict[str, Any]:
    given: dict[str, Any] = copy.deepcopy(RUN)
    if key is None:
        given[section] = value
    else:
        given.setdefault(section, {})[key] = value
    return given


def test_the_committed_schema_is_what_the_command_prints() -> None:
    assert schema() == COMMITTED, "out of date; python -m tools.config schema > configs/schema.json"
    jsonschema.Draft7Validator.check_schema(COMMITTED)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_run_file_names_it_and_is_valid(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert name != first and (path.parent / name).resolve() == (CONFIGS / "schema.json").resolve()
    assert [error.message for error in CHECKED.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize("path", [CONFIGS / "quickstart.yaml", CONFIGS / "tiles" / "1b.yaml"], ids=str)
def test_so_is_a_resolved_one(path: Path) -> None:
    assert [error.message for error in CHECKED.iter_errors(load_config(path).to_dict())] == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "step", 4),
        ("trian", None, {"steps": 4}),
        ("train", "steps", "many"),
        ("train", "micro_batch_size", 0),
        ("train", "precision", "fp8"),
        ("train", None, [1]),
        ("sparsity", "method", "smett"),
        ("sparsity", "density", 0),
        ("sparsity", "density", 1.5),
        ("sparsity", "block", [16]),
        ("sparsity", "block", [1.5, 16]),
        ("sparsity", "growth", "gradeint"),
        ("sparsity", "include", "*mlp*"),
        ("model", "num_hidden_layers", 0),
        ("model", "layers", 4),
        ("model", "hidden_act", "gelu"),
        ("model", "family", "gpt"),
        ("data", "train", [{"weight": 1.0}]),
        ("data", "train", [{"path": "corpus", "wieght": 1.0}]),
        ("data", "reset_attention", "yes please"),
        ("optimizer", "lr", -1e-3),
        ("optimizer", "beta1", 1.0),
        ("parallel", "zero_stage", 4),
        ("checkpoint", "keep_last", -1),
        ("operation", "heartbeat", 0),
        ("guard", "window", 15),
        ("callbacks", None, [{"options": {}}]),
        ("logging", "writers", ["wandbb"]),
        ("logging", "writers", [{"options": {}}]),
        ("deepspeed", "wandb", {"enabled": True}),
        ("deepspeed", "train_batch_size", 8),
        ("deepspeed", "zero_optimisation", {}),
        ("deepspeed", "zero_optimization", {"stage": 2}),
    ],
)
def test_what_is_wrong_is_wrong_for_both(section: str, key: str | None, value: Any) -> None:
    given = changed(section, key, value)
    assert not CHECKED.is_valid(given)
    with pytest.raises(ConfigError):
        config_from_dict(given)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "micro_batch_size", None),
        ("train", "steps", 4.0),
        ("sparsity", None, None),
        ("sparsity", "growth", "my.module:grow"),
        ("sparsity", "block", [1, 1]),
        ("sparsity", "row_parallel", ["*o_proj", "*down_proj"]),
        ("model", "head_dim", 0),
        ("model", "num_key_value_heads", 1),
        ("data", "train", [{"path": "one", "weight": 2}, {"path": "other"}]),
        ("data", "validation", "corpus"),
        ("guard", "window", 16),
        ("optimizer", "min_lr_ratio", 1),
        ("logging", "writers", "tensorboard"),
        ("logging", "writers", ["wandb", "my.module:Writer", {"name": "trackio", "options": {"project": "a"}}]),
        ("callbacks", None, ["my.module:Callback", {"name": "my.module:Other", "options": {"a": 1}}]),
        ("deepspeed", "zero_optimization", {"reduce_bucket_size": 1000000}),
    ],
)
def test_what_is_right_is_right_for_both(section: str, key: str | None, value: Any) -> None:
    given = changed(section, key, value)
    assert [error.message for error in CHECKED.iter_errors(given)] == []
    config_from_dict(given)


def test_of_a_family_of_ones_own_any_key_is_taken() -> None:
    given = {**RUN, "model": {"family": "tests.families.tiny:FAMILY", "words": 64}}
    assert CHECKED.is_valid(given)
    assert not CHECKED.is_valid({**RUN, "model": {"family": None, "words": 64}})
