"""Layouts that cannot work are refused with the reason, and with layouts that do work."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from pretrain.__main__ import main
from pretrain.config import RunConfig
from pretrain.config.layouts import candidates, nearest_layouts, works
from pretrain.environment import check_world
from pretrain.errors import ConfigError, LaunchError
from tests.pretrain.config.test_checks import make

PARALLEL = {"zero_stage": 1}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"parallel": {"tensor": 3}}, ["model.num_attention_heads is 4", "tensor sizes that fit this model: 1, 2, 4"]),
        (
            {"parallel": {"tensor": 4}, "model": {"num_key_value_heads": 2}},
            ["model.num_key_value_heads is 2", ": 1, 2"],
        ),
        ({"parallel": {"tensor": 4}, "model": {"vocab_size": 510}}, ["model.vocab_size is 510", ": 1, 2"]),
        (
            {"parallel": {"tensor": 4, "sequence": True}, "data": {"seq_length": 250}},
            ["data.seq_length is 250, expected a multiple of parallel.tensor 4"],
        ),
        ({"parallel": {"pipeline": 5}}, ["parallel.pipeline is 5, expected at most model.num_hidden_layers 4"]),
        (
            {"parallel": {"tensor": 4}, "sparsity": {"block": [32, 128]}},
            ["multiple of 8 tiles, whole bytes of the packed mask", "use smaller tiles or fewer"],
        ),
        (
            {"parallel": {"tensor": 4}, "sparsity": {"topology_ranges": 6}},
            ["sparsity.topology_ranges is 6, expected 1 or a multiple of parallel.tensor 4"],
        ),
        (
            {"parallel": {"tensor": 2}, "sparsity": {"topology_ranges": 14}},
            ["sparsity.topology_ranges is 14, expected a number that cuts every sparse layer into equal ranges"],
        ),
    ],
)
def test_reasons(sections: dict[str, Any], expected: list[str]) -> None:
    changed = {**sections, "parallel": {**PARALLEL, **sections["parallel"]}}
    if "sparsity" in changed and changed["sparsity"].get("block") == [32, 128]:
        changed["model"] = {"intermediate_size": 384}
    with pytest.raises(ConfigError) as caught:
        make(**changed)
    text = "\n".join(caught.value.problems)
    assert all(part in text for part in expected), text


def configs(**parallel: Any) -> RunConfig:
    return make(parallel={**PARALLEL, **parallel})


def test_a_world_that_does_not_divide_names_layouts_that_work() -> None:
    config = configs(tensor=2, pipeline=2)
    check_world(8, config)
    with pytest.raises(LaunchError) as caught:
        check_world(6, config)
    text = str(caught.value)
    assert "6 processes started, expected a multiple of parallel.tensor 2 x parallel.pipeline 2 = 4" in text
    named = re.findall(r"tensor (\d+), pipeline (\d+), zero_stage (\d)", text)
    assert named
    for tensor, pipeline, zero in named:
        layout = replace(config.parallel, tensor=int(tensor), pipeline=int(pipeline), zero_stage=int(zero))
        assert works(config.model, config.data, config.sparsity, layout, 6)


def test_a_batch_that_does_not_divide_is_refused_with_the_layout() -> None:
    with pytest.raises(ConfigError, match="train.global_batch_size is 16, expected a multiple of"):
        check_world(3, configs())


def test_nearest_layouts_work_and_are_near() -> None:
    config = configs(tensor=2, pipeline=4)
    three = replace(config.parallel, zero_stage=3)
    found = nearest_layouts(config.model, config.data, config.sparsity, three, 16)
    assert len(found) == 3 and "tensor 2, pipeline 4, zero_stage 1 (2 data-parallel ranks)" in found
    possible = [
        other for other in candidates(three, 16) if works(config.model, config.data, config.sparsity, other, 16)
    ]
    assert {other.tensor for other in possible} == {1, 2, 4} and all(other.pipeline <= 4 for other in possible)
    assert not any(other.pipeline > 1 and other.zero_stage > 1 for other in possible)


CONFIG = "configs/9m.yaml"


def test_pipeline_with_zero_two_names_alternatives_for_this_many_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "16", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main([CONFIG, "parallel.pipeline=2", "parallel.zero_stage=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a pipeline sums gradients over its micro-batches in place, while ZeRO-2 and 3 scatter them" in line
    assert "with 16 ranks these work: " in line
    assert "tensor 1, pipeline 2, zero_stage 1 (8 data-parallel ranks)" in line
    assert "tensor 1, pipeline 1, zero_stage 2 (16 data-parallel ranks)" in line
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.tensor=2", "parallel.pipeline=2", "parallel.zero_stage=1"],
        ["parallel.tensor=5"],
        ["parallel.tensor=2", "sparsity.topology_ranges=3"],
        ["train.global_batch_size=9", "train.micro_batch_size=1"],
    ],
)
def test_refused_before_any_process_group(
    layout: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([CONFIG, *layout]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines)
    assert not dist.is_initialized()
