"""An optimizer of one's own: a formula outside the packages, named in a run file, trains and resumes in any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain.__main__ import main
from pretrain.checkpoint.vectors import VectorReader
from pretrain.config import config_from_dict
from pretrain.errors import ConfigError
from pretrain.formula import formula_of
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

HALVED = "tests.pretrain.own_formulas:Halved"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def job(corpus: str, output: Path, name: str, options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    optimizer = {"lr": 3e-3, "warmup_steps": 2, "weight_decay": 0.01, "name": name, "options": options}
    optimizer |= {"beta2": 0.95} if name == "adamw_8bit" else {}
    return {**settings(corpus, output, **changes), "optimizer": optimizer}


@pytest.mark.parametrize(
    ("stage", "precision", "name", "options"),
    [
        (1, "fp32", HALVED, {"momentum": 0.8}),
        (2, "bf16", HALVED, {}),
        (3, "fp32", HALVED, {}),
        (2, "fp32", "lion", {"betas": [0.9, 0.95]}),
        (2, "fp32", "tests.pretrain.own_formulas:Sign", {}),
        (2, "bf16", "adamw_8bit", {}),
        (3, "fp32", "adamw_8bit", {}),
    ],
)
def test_it_trains_and_resumes_exactly_and_the_plan_prices_it(
    corpus: str, tmp_path: Path, stage: int, precision: str, name: str, options: dict[str, Any]
) -> None:
    common = {"parallel__zero_stage": stage, "train__precision": precision}
    whole = job(corpus, tmp_path / "whole", name, options, **common)
    parts = [job(corpus, tmp_path / "parts", name, options, **common, train__stop_at=stop) for stop in (5, 14)]
    uninterrupted, _, resumed = run_ranks(train_all, 2, [whole, *parts])[0]
    for what in ("losses", "norms", "validation", "digests", "masks"):
        assert resumed[what] == uninterrupted[what], what
    assert len(resumed["digests"]) == 3
    assert uninterrupted["losses"][-1] < uninterrupted["losses"][0] - 0.1, "it must learn"
    formula = formula_of(config_from_dict(whole))
    assert f"{formula.name} in ZeRO-{stage}, data 2" in uninterrupted["screen"]
    report = json.loads((tmp_path / "whole" / "memory.json").read_text())
    for planned, measured in zip(report["planned_per_rank"], report["measured_per_rank"], strict=True):
        for part in ("sparse", "dense"):
            assert measured[part]["moments"] == planned[part]["moments"]
        assert planned["sparse"]["moments"] * 4 == planned["sparse"]["master"] * type(formula).width()
    assert (planned["sparse"]["moments"] > 0) == bool(formula.state)


def test_its_state_is_stored_by_name_and_read_into_any_layout(corpus: str, tmp_path: Path) -> None:
    even: dict[str, Any] = {  # what two tensor-parallel ranks can share
        "model__num_attention_heads": 4, "model__num_key_value_heads": 2, "model__vocab_size": 98,
        "sparsity__topology_ranges": 2,
    }  # fmt: skip
    begun = run_ranks(train_all, 2, [job(corpus, tmp_path / "first", HALVED, {}, **even, train__stop_at=6)])[0][0]
    saved = tmp_path / "first" / "checkpoints" / "step-00000006"
    entries = VectorReader(saved).entries()
    layer = "model.layers.0.mlp.up_proj.values"
    assert {key.partition("/")[2] for key in entries if key.startswith(f"{layer}/")} == {"velocity", "square", "birth"}
    assert entries[f"{layer}/square"].properties.dtype == torch.bfloat16
    layouts: list[dict[str, Any]] = [
        {"parallel__zero_stage": 3}, {"parallel__tensor": 2, "parallel__zero_stage": 1},
        {"parallel__pipeline": 2, "parallel__zero_stage": 1},
    ]  # fmt: skip
    jobs = [
        job(corpus, tmp_path / str(n), HALVED, {}, checkpoint__resume=str(saved), **even, **layout)
        for n, layout in enumerate(layouts)
    ]
    same = job(corpus, tmp_path / "first", HALVED, {}, **even)
    reference, *ends = run_ranks(train_all, 2, [same, *jobs], timeout=240)[0]
    for end in ends:
        assert end["losses"] == pytest.approx(reference["losses"][6:], rel=2e-4)
    assert ends[0]["digests"] == {step: made for step, made in reference["digests"].items() if step > 6}
    assert begun["steps"] == list(range(1, 7))


def test_another_optimizer_cannot_go_on_with_its_state(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ranks(train_all, 1, [settings(corpus, tmp_path / "adamw", train__stop_at=2)])
    saved = tmp_path / "adamw" / "checkpoints" / "step-00000002"
    branch = job(corpus, tmp_path / "lion", "lion", {}, checkpoint__resume=str(saved))
    (tmp_path / "lion.yaml").write_text(yaml.safe_dump(branch))
    with pytest.raises(AssertionError, match="holds the state of the optimizer adamw, and optimizer.name is lion"):
        run_ranks(train_all, 1, [branch])


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            {"name": "adamv"},
            "optimizer.name is 'adamv', expected one of adamw, adamw_8bit, lion, or package.module:name (did",
        ),
        ({"name": "tests.pretrain.own_formulas:Halfed"}, "has no 'Halfed' (did you mean 'Halved'?)"),
        ({"name": "tests.no_such:Halved"}, "module tests.no_such cannot be imported (ModuleNotFoundError"),
        ({"name": "tests.pretrain.own_formulas:NO_FORMULA"}, "NO_FORMULA', an int, expected a class derived from"),
        ({"name": "pathlib:Path"}, "optimizer.name is 'pathlib:Path', a class, expected a class derived from"),
        ({"name": "tests.pretrain.own_formulas:Nameless"}, "Nameless calls a state 'birth', expected a name of its"),
        ({"name": "tests.pretrain.own_formulas:Eighths"}, "keeps its state 'eighth' in torch.float8_e4m3fn, expected"),
        ({"name": HALVED, "options": {"momentm": 1}}, "optimizer.options.momentm is no option of halved (did you mean"),
        (
            {"name": "lion", "options": {"betas": 0.9}},
            "optimizer.options.betas are 0.9, expected two numbers in",
        ),
        ({"name": "lion", "options": {"betas": ["a", None]}}, "betas are ('a', None), expected two numbers in [0, 1)"),
        (
            {"name": "lion", "options": {"betas": [0.9, 2]}},
            "optimizer.options.betas are (0.9, 2), expected two numbers",
        ),
        (
            {"name": "lion", "beta1": 0.8},
            "optimizer.beta1 is 0.8, which only adamw and adamw_8bit read; the options of lion are",
        ),
        (
            {"name": "adamw_8bit"},
            "optimizer.beta1, beta2 are (0.9, 0.999), expected a faster second average for 8 bits",
        ),
        ({"options": {"betas": [0.9, 0.9]}}, "optimizer.options is {'betas': [0.9, 0.9]}, expected none with adamw"),
        ({"name": "lion", "options": 3}, "optimizer.options is 3 (int), expected a mapping"),
        (
            {"name": "tests.pretrain.own_formulas:Orthogonal"},
            "orthogonal requires matrices, and ZeRO and fully_shard cut parameters",
        ),
    ],
)
def test_what_cannot_be_is_one_line_at_a_dry_run(
    corpus: str, tmp_path: Path, optimizer: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**settings(corpus, tmp_path / "run"), "optimizer": {"lr": 1e-3, **optimizer}}))
    assert main([str(file), "--dry-run"]) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == (3 if "Nameless" in said else 1) and said in "".join(lines), lines


def test_a_dry_run_prices_the_state_and_an_unknown_name_starts_nothing(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {}
    for name in ("adamw", "lion", HALVED):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({**settings(corpus, tmp_path / "run"), "optimizer": {"lr": 1e-3, "name": name}}))
        assert main([str(file), "--dry-run", "--json"]) == 0
        rows[name] = json.loads(capsys.readouterr().out)["plan"]["at_rest"]["sparse"]["moments"]
    assert rows["adamw"] == 2 * rows["lion"] and rows[HALVED] * 8 == rows["adamw"] * 6
    with pytest.raises(AssertionError, match="optimizer.name is 'tests.pretrain.own_formulas:Gone'"):
        run_ranks(train_all, 1, [job(corpus, tmp_path / "gone", "tests.pretrain.own_formulas:Gone", {})])
    with pytest.raises(ConfigError, match="requires matrices"):
        formula_of(config_from_dict(job(corpus, tmp_path, "tests.pretrain.own_formulas:Orthogonal", {})))
