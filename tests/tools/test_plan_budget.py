"""The planner knows GPUs by name, what a whole run takes, and which models a number of GPUs can train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.plan.devices import DEVICES
from smet.kernels import sides
from tools.planner import which
from tools.planner.budget import weights_of
from tools.planner.cli import main
from tools.planner.machines import LINKS, MEMORY, PRODUCTS, find_name, machine_of
from tools.planner.search import search, share_evenly
from tools.planner.timing import Machine


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", DEVICES)
def test_every_gpu_of_the_table_gives_a_machine(name: str) -> None:
    found, sheet = machine_of(name, {}), DEVICES[name]
    assert found.memory == sheet.memory and name in found.note
    assert found.machine.flops == PRODUCTS * sheet.flops
    assert found.machine.memory_bandwidth == MEMORY * sheet.memory_bandwidth
    assert found.machine.node_bandwidth == LINKS * sheet.node_bandwidth


def test_without_a_name_an_h100_is_assumed() -> None:
    unnamed, h100 = machine_of(None, {}).machine, machine_of("H100", {}).machine
    for figure in ("flops", "memory_bandwidth", "node_bandwidth"):
        assert getattr(unnamed, figure) == pytest.approx(getattr(h100, figure), rel=0.02)


def test_names_are_found_however_they_are_written_and_figures_given_win() -> None:
    assert [find_name(text) for text in ("h200", "mi300x", "4090", "rtx 4090", "a100_40gb", "CPU", "this cpu")] == [
        "H200", "MI300X", "RTX-4090", "RTX-4090", "A100-40GB", "cpu", "cpu",
    ]  # fmt: skip
    assert machine_of("H100", {"flops": 1e12}).machine.flops == 1e12


@pytest.mark.parametrize(("text", "hint"), [("H10", "did you mean 'H100'"), ("B20", "did you mean 'B200'")])
def test_an_unknown_name_is_answered_with_the_nearest(text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs/9m.yaml", "--gpu", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --gpu is '{text}', expected one of A100-40GB, ") and hint in error


def test_a_whole_run_is_told_in_hours_money_and_tokens_per_weight(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["configs/7b.yaml", "--world-size", "64", "--gpu", "H100", "--price", "2.5"]
    report = printed(capsys, *arguments)
    budget, dense, config = report["budget"], report["dense_budget"], load_config("configs/7b.yaml")
    seconds = report["step_time"]["total"] * config.train.steps
    assert budget["hours"] == pytest.approx(seconds / 3600)
    assert budget["gpu_hours"] == pytest.approx(64 * budget["hours"])
    assert budget["cost"] == pytest.approx(2.5 * budget["gpu_hours"])
    tokens = config.train.steps * config.train.global_batch_size * config.data.seq_length
    assert (budget["weights"], budget["tokens"]) == (dense["weights"], dense["tokens"]) == (6_738_415_616, tokens)
    assert dense["active"] == dense["weights"] > 3 * budget["active"]
    assert budget["tokens_per_active_weight"] == pytest.approx(tokens / budget["active"])
    assert main(arguments) == 0
    screen = capsys.readouterr().out
    for row in ("| hours |", "| GPU hours |", "| cost at 2.5 per GPU hour |", "| tokens per weight |",
                "| tokens per active weight |", "H100: of its data sheet 0.4 of 989 TFLOP/s"):  # fmt: skip
        assert row in screen, row
    assert main(["configs/9m.yaml", "--price", "-1"]) == 2
    assert "--price is -1" in capsys.readouterr().err


def test_weights_are_those_of_the_whole_model_in_any_layout() -> None:
    plain = weights_of(load_config("configs/1b.yaml"))
    assert plain == weights_of(load_config("configs/1b.yaml", ["parallel.tensor=4", "parallel.pipeline=2",
                                                               "parallel.zero_stage=1"]))  # fmt: skip


def test_this_cpu_is_measured_not_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["configs/quickstart.yaml", "--world-size", "2", "--gpu", "cpu"]
    report = printed(capsys, *arguments)
    flops = report["machine"]["flops"]
    assert 1e8 < flops < 2e13, "no processor is an H100"
    assert "measured just now" in report["assumed"]
    config = load_config("configs/quickstart.yaml")
    tokens = config.train.global_batch_size * config.data.seq_length
    assert tokens / report["step_time"]["total"] < 2 * flops / (4 * weights_of(config)[1])
    assert machine_of("cpu", {"flops": 1e9}, 2).memory < machine_of("cpu", {}, 1).memory


def test_products_over_tiles_are_named_beside_dense_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs/tiles/7b.yaml", "--world-size", "64"]) == 0
    screen = capsys.readouterr().out
    assert "s are over tiles" in screen and "1.8 times as long for each operation" in screen


def test_a_search_tells_what_its_first_layout_takes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["configs/9m.yaml", "--search", "--gpus", "2", "--gpu", "L40S", "--price", "1"]
    found = printed(capsys, *arguments)
    assert found[0]["budget"]["cost"] == pytest.approx(found[0]["budget"]["gpu_hours"])
    assert max(one["peak"] for one in found) <= 0.9 * 48e9, "the memory is that of the GPU"
    assert main(arguments) == 0
    assert "| the whole run: " in capsys.readouterr().out


def test_a_quick_search_finds_what_a_thorough_one_finds() -> None:
    for memory in (2e9, 40e9):
        config = load_config("configs/60m.yaml")
        best, quick = (search(config, 4, memory, Machine(), thorough=thorough)[0] for thorough in (True, False))
        assert quick == best


@pytest.mark.parametrize(("gpus", "batch"), [(1, 512), (8, 512), (3, 504), (7, 504), (96, 480), (1000, 1000)])
def test_a_batch_is_shared_evenly_with_little_change(gpus: int, batch: int) -> None:
    config = load_config("configs/60m.yaml")
    assert share_evenly(config, gpus).train.global_batch_size == batch


def test_which_models_can_be_trained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert which.model_sizes() == ["9m", "60m", "130m", "350m", "1b", "3b", "7b", "13b", "70b"]
    monkeypatch.setattr(which, "model_sizes", lambda: ["60m", "3b", "13b"])
    report = printed(capsys, "--which", "--gpus", "1", "--gpu", "RTX-4090", "--price", "0.5")
    answers = {(one["size"], one["kind"] == "dense"): one for one in report}
    fits = {place: one["fits"] for place, one in answers.items()}
    assert fits == {
        ("60m", True): True, ("60m", False): True, ("3b", True): False, ("3b", False): True,
        ("13b", True): False, ("13b", False): False,
    }  # fmt: skip
    sparse = answers["3b", False]
    budget = sparse["budget"]
    assert budget["tokens"] / budget["weights"] == pytest.approx(20, rel=0.01)
    assert sparse["best"]["peak"] <= 0.9 * 24e9 and "density 0.25, " in sparse["kind"]
    assert "no layout of 1 GPUs fits 21.6 GB" in answers["13b", True]["why_not"]
    assert main(["--which", "--gpus", "1", "--gpu", "RTX-4090", "--price", "0.5"]) == 0
    screen = capsys.readouterr().out
    assert "| 3b | 3.4" in screen and "nothing was run" in screen and "20 tokens / weight take" in screen
    assert screen.count("| no |") == 3


def test_the_dense_model_beside_a_sparser_one_is_dense() -> None:
    runs = dict(which.runs_of("60m", ["sparsity.density=0.1", "train.micro_batch_size=8", "sparsity.method=static"]))
    dense, sparse = runs["dense"], runs["density 0.1, 32 x 32"]
    assert (dense.sparsity.method, dense.sparsity.density, sparse.sparsity.method) == ("dense", 1.0, "static")
    assert dense.train.micro_batch_size == sparse.train.micro_batch_size == 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no run file is given"),
        (["--which"], "give --gpus N"),
        (["configs/9m.yaml", "--which", "--gpus", "1"], "expected no run file, found configs/9m.yaml"),
        (["configs/9m.yaml", "--memory", "1GB", "--top", "3"], "--memory, --top without --search has no effect"),
        (["--which", "--gpus", "1", "--world-size", "2"], "--gpus is 1 and --world-size 2, expected one of them"),
        (["configs/9m.yaml", "--which", "--search", "--gpus", "1"], "--search is about one run file and --which about"),
    ],
)
def test_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_where_a_gpu_waits_for_python_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs/9m.yaml", "--world-size", "8"]) == 0
    assert "more than the GPU's" in capsys.readouterr().out
    assert main(["configs/clusters/13b-128x80gb.yaml", "--world-size", "128"]) == 0
    assert "more than the GPU's" not in capsys.readouterr().out


def test_what_is_said_of_whole_steps_over_tiles_was_measured() -> None:
    page = Path("docs/performance-gpu.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| 1b-shaped stack, ZeRO-2, 16,384")
               and "SMET 128 x 128, density 0.25 |" in line)  # fmt: skip
    busy = float(row.split("|")[6])
    assert busy == pytest.approx(sides.STEP_OVER_TILES, abs=0.1)
