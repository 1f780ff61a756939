"""Dry runs: one rank of large layouts, built on one machine without data, checked and printed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import pretrain.dry_run
from pretrain.__main__ import main
from pretrain.config import load_config
from pretrain.idle import idle
from pretrain.plan import plan_rank

ROOT = Path(__file__).parent.parent.parent
CLUSTERS = {"1b-8x80gb": 8, "7b-64x80gb": 64, "13b-128x80gb": 128, "70b-1024x80gb": 1024}


def dry_run(*arguments: str) -> list[str]:
    return [str(ROOT / "configs" / arguments[0]), *arguments[1:], "--dry-run"]


def test_every_cluster_file_is_here() -> None:
    assert {path.stem for path in (ROOT / "configs" / "clusters").glob("*.yaml")} == CLUSTERS.keys()


@pytest.mark.parametrize("name", CLUSTERS)
def test_ready_layouts_fit_and_build(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = CLUSTERS[name]
    assert (
        main([*dry_run(f"clusters/{name}.yaml"), "--world-size", str(world), "--rank", str(world - 1), "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["world_size"] == world and report["rank"] == world - 1
    assert report["plan"]["peak"] <= 0.9 * 80e9, "a tenth of the memory is to stay free"
    assert not dist.is_initialized()
    config = load_config(ROOT / "configs" / "clusters" / f"{name}.yaml")
    assert config.train.output_dir == f"runs/{name}"


def test_a_rank_of_a_pipeline_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["parallel.pipeline=8", "parallel.zero_stage=1", "train.micro_batch_size=1"]
    arguments = [*dry_run("clusters/70b-1024x80gb.yaml"), *layout, "--world-size", "1024", "--rank", "1000"]
    assert main(arguments) == 0
    screen = capsys.readouterr().out
    assert "1024 ranks = data 16 x tensor 8 x pipeline 8, ZeRO-1" in screen
    assert "rank 1000: data 13, tensor 0, stage 7 of 8" in screen
    assert "to lm_head" in screen and "| **peak** |" in screen and "all checks passed" in screen


@pytest.mark.parametrize(
    "changes",
    [
        ["model.tie_word_embeddings=true", "parallel.pipeline=2", "parallel.zero_stage=1"],
        ["sparsity.block=[1, 4]", "parallel.tensor=2", "sparsity.distribution=erk"],
        ["sparsity.method=dense", "parallel.tensor=2"],
        ["sparsity.mask_residency=replicated"],
        ["sparsity.exclude=['*embed*', '*lm_head*', '*mlp*']"],
    ],
)
def test_what_is_built_is_what_is_planned(changes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 7):
        assert main([*dry_run("9m.yaml"), *changes, "--world-size", "8", "--rank", str(rank)]) == 0, capsys.readouterr()


def test_a_density_that_leaves_layers_with_one_weight_is_planned_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert main([*dry_run("9m.yaml"), "sparsity.density=1e-9", "--world-size", "8"]) == 0
    few, rate, initial = (record.getMessage() for record in caplog.records if record.name == "smet")
    assert "layers have too few tiles for the density" in few and "instead of 1e-09" in few
    assert "lr_exponent would scale learning rates by up to " in rate and "32 is the most that is used" in rate
    assert "fan_in_init would scale initial weights" in initial


def test_settings_that_decide_nothing_are_named_as_in_the_run_file(caplog: pytest.LogCaptureFixture) -> None:
    given = ["sparsity.method=static", "sparsity.growth=gradient", "sparsity.mask_init=snip", "sparsity.seed=3"]
    assert main([*dry_run("9m.yaml"), *given]) == 0
    assert [record.getMessage() for record in caplog.records if record.name == "smet"] == [
        "smet: note: sparsity.growth decides nothing: sparsity.update_interval is 0, as sparsity.method 'static' has"
        " it, the masks stay as they are",
        "smet: note: sparsity.seed decides nothing: sparsity.mask_init 'snip' draws nothing, and the masks stay as they"
        " are",
    ]
    caplog.clear()
    assert main([*dry_run("9m.yaml"), "sparsity.prune_end=0.7"]) == 0
    assert all("(sparsity.prune_" in record.getMessage() for record in caplog.records if record.name == "smet")
    config = load_config(ROOT / "configs" / "9m.yaml", ["sparsity.method=dense", "sparsity.mask_init=snip"])
    assert plan_rank(config, 1).before_training == 0, "no dense model computes for masks that hold every weight"


def test_settings_of_other_sections_that_decide_nothing_are_told_too() -> None:
    given = [
        "optimizer.decay_fraction=0.5", "data.eos_id=3", "evaluation.prompts_tokens=9", "data.validation=null",
        "evaluation.interval=0", "guard.enabled=false", "guard.window=64", "guard.norm_deviations=3",
        "checkpoint.interval=300", "checkpoint.keep_every=1000", "sparsity.compute=tiles",
    ]  # fmt: skip
    told = idle(load_config(ROOT / "configs" / "9m.yaml", given))
    assert told == [
        "optimizer.decay_fraction decides nothing: optimizer.schedule is cosine, and only wsd reads it",
        "data.eos_id decides nothing: data.reset_attention is false, and documents see each other",
        "evaluation.prompts_tokens decides nothing: there are no evaluation.prompts",
        "evaluation.samples decides nothing: there is no data.validation",
        "guard.norm_deviations decides nothing: guard.enabled is false, and spikes are left in",
        "checkpoint.keep_every is 1000, no multiple of checkpoint.interval 300: only checkpoints at multiples of 3000"
        " are kept for good",
        "sparsity.compute 'tiles' multiplies tiles from 8 x 8 on: of 1 x 1 all products are dense",
    ]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert idle(load_config(path)) == [], path


def test_a_plan_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs" / "9m.yaml")
    planned = plan_rank(config, 8)
    wrong = type(planned)(**{**vars(planned), "stored_weights": planned.stored_weights + 1})
    monkeypatch.setattr(pretrain.dry_run, "plan_rank", lambda *_, **__: wrong)
    with pytest.raises(RuntimeError, match="stored weights"):
        pretrain.dry_run.dry_run(config, 0, 8)
    assert not dist.is_initialized()


def test_without_a_world_size_it_takes_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*dry_run("9m.yaml"), "parallel.tensor=2"]) == 0
    assert "2 ranks = data 1 x tensor 2 x pipeline 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rank", "8", "--world-size", "8"], "--rank is 8, expected 0 to 7 of 8 ranks"),
        (["parallel.tensor=2", "--world-size", "3"], "expected a multiple of parallel.tensor 2"),
        (["--world-size", "3"], "expected a multiple of micro_batch_size 64 x 3 data-parallel ranks"),
    ],
)
def test_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*dry_run("9m.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error and error.count("\n") == 1
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dry-run", "--world-size", "0"], "argument --world-size: is '0', expected a whole number of 1 or more"),
        (["--world-size", "2", "--json"], "--world-size, --json without --dry-run; a launcher starts several ranks"),
        (["--json"], "error: --json without --dry-run\n"),
        (["--rank", "0"], "--rank without --dry-run; a launcher starts several ranks, such as smet launch"),
    ],
)
def test_words_of_a_dry_run_start_no_training(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([dry_run("9m.yaml")[0], *arguments])
    assert ended.value.code == 2 and expected in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_takes_seconds_and_writes_nothing(tmp_path: Path) -> None:
    begin = time.process_time(), time.perf_counter()
    arguments = [*dry_run("clusters/70b-1024x80gb.yaml"), "--world-size", "1024", "--rank", "77"]
    run = subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "rank 77: data 9, tensor 5, stage 0 of 1" in run.stdout and not run.stderr
    assert not list(tmp_path.iterdir())
    assert time.perf_counter() - begin[1] < 120  # seconds on an idle machine; tests may share theirs
