"""The planner's command: tables, JSON, search, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.plan import RankPlan, plan_rank
from tools.planner import page
from tools.planner.cli import main
from tools.planner.search import search
from tools.planner.timing import Machine, slowest_stage

CONFIG = "configs/7b.yaml"
WORLD = ["--world-size", "64"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_of_7b_are_those_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    report = planned(capsys, CONFIG, *WORLD, "parallel.zero_stage=1")
    (sparse,), (dense,) = report["stages"], report["dense_stages"]
    weights = 6_738_415_616  # LLaMA 7B
    assert dense["total_weights"] == dense["stored_weights"] == weights
    kinds = {kind: sum(part[kind] for part in dense["at_rest"].values()) for kind in dense["at_rest"]["dense"]}
    assert kinds["weights"] == pytest.approx(2 * weights, rel=1e-6)
    assert kinds["master"] + kinds["moments"] == pytest.approx(12 * weights / 64, rel=1e-4)
    assert kinds["ages"] == kinds["masks"] == 0
    rest = sparse["at_rest"]["sparse"]
    linear = 6_476_005_376  # in the sparse layers
    assert rest["weights"] == pytest.approx(2 * linear / 4, rel=1e-4)
    assert rest["ages"] == pytest.approx(linear / 4 / 64, rel=1e-3)
    assert rest["masks"] == pytest.approx(linear / 8 / 64, rel=1e-3)
    assert dense["sent"]["gradients"] == pytest.approx(2 * 2 * weights * 63 / 64, rel=1e-6)
    assert dense["sent"]["weights"] == pytest.approx(2 * weights * 63 / 64, rel=1e-4)
    tokens = 1024 * 4096 / 64
    assert dense["flops"]["model"] == sparse["flops"]["model"] >= 6 * tokens * (weights - 32000 * 4096 - 65 * 4096)


def test_the_table_names_every_kind_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, *WORLD, "parallel.tensor=2"]) == 0
    screen = capsys.readouterr().out
    for row in ("weights at rest", "masks at rest", "activations of a micro-batch, checkpointing, sequence parallel",
                "transient: dense layer", "transient: gathered weights", "sent per step: tensor",
                "sent per topology update", "model PFLOPs", "| **peak** |", "Predicted, not measured"):  # fmt: skip
        assert row in screen, row


def test_a_pipeline_is_shown_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["parallel.pipeline=4", "parallel.zero_stage=1"]
    report = planned(capsys, CONFIG, *WORLD, *layout)
    assert [stage["in_flight"] for stage in report["stages"]] == [4, 3, 2, 1]
    assert sum(stage["total_weights"] for stage in report["stages"]) == 6_738_415_616
    assert main([CONFIG, *WORLD, *layout]) == 0
    screen = capsys.readouterr().out
    assert "| stage | blocks |" in screen and ", the fullest:" in screen


def test_search_finds_what_fits_fastest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--search", "--gpus", "16", "--memory", "40GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    times = [one["time"]["total"] for one in found]
    assert times == sorted(times) and len({json.dumps(one["settings"]) for one in found}) == len(found) > 20
    assert max(one["peak"] for one in found) <= 0.9 * 40e9
    assert {one["settings"]["parallel.pipeline"] for one in found} > {1, 2}
    first = found[0]
    overrides = [f"{name}={json.dumps(value)}" for name, value in first["settings"].items()]
    report = planned(capsys, CONFIG, "--world-size", "16", *overrides)
    assert max(stage["peak"] for stage in report["stages"]) == first["peak"]
    assert report["step_time"]["total"] == pytest.approx(times[0])


def test_a_search_keeps_to_the_layout_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["parallel.tensor=2", "train.activation_checkpointing=true", "train.micro_batch_size=null"]
    assert main(["configs/9m.yaml", *given, "--search", "--gpus", "4", "--json"]) == 0
    found = [one["settings"] for one in json.loads(capsys.readouterr().out)]
    assert all(one["parallel.tensor"] == 2 and one["train.activation_checkpointing"] for one in found)
    assert {one["parallel.zero_stage"] for one in found} == {1, 2, 3} and len(found) > 6
    assert all(one["train.micro_batch_size"] in (1, 2, 4, 8, 16, 32, 64) for one in found)


def test_the_machine_given_decides_the_ranking() -> None:
    config = load_config("configs/9m.yaml")
    slow = search(config, 16, 80e9, Machine(network_bandwidth=1e8, overlap=0.0))
    assert slow[0].settings["parallel.zero_stage"] == 1, "one gradient sum per step where the network is slow"
    alone = search(config, 16, 80e9, Machine(node_bandwidth=1e15, network_bandwidth=1e15, memory_bandwidth=1e18))
    assert alone[0].settings["train.activation_checkpointing"] is False


def test_leaving_out_like_stages_changes_nothing() -> None:
    config = load_config(CONFIG, ["parallel.pipeline=8", "parallel.zero_stage=1", "train.micro_batch_size=1"])
    every, time = slowest_stage(config, 64, Machine())
    some, same = slowest_stage(config, 64, Machine(), alike=False)
    assert len(some) < len(every) == 8 and time == same
    assert max(plan.peak for plan in some) == max(plan.peak for plan in every)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([CONFIG, "--search"], "give --gpus N"),
        ([CONFIG, "--search", "--gpus", "2", "--memory", "4GB"], "no layout of 2 GPUs fits 3.6 GB"),
        ([CONFIG, "--search", "--gpus", "37"], "no layout of 37 GPUs divides train.global_batch_size 1024"),
        ([CONFIG, "parallel.tensor=2", "--world-size", "3"], "expected a multiple of parallel.tensor 2"),
        ([CONFIG, "parallel.pipeline=2", "--world-size", "16"], "with 16 ranks these work: "),
        (["configs/7c.yaml"], "did you mean '7b.yaml'"),
    ],
)
def test_refusals(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error


@pytest.mark.slow
def test_the_page_is_what_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("docs/layouts.md").read_text(encoding="utf-8")
    assert text.count("<!-- plan: ") == len(page.MARKED.findall(text)) == 12
    for match in page.MARKED.finditer(text):
        assert f"`smet plan {match['arguments']}`" in text.replace("\n", " "), "shown as it is run"
    assert page.main(["docs/layouts.md", "--check"]) == 0, capsys.readouterr()


def test_a_page_out_of_date_is_noticed_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.md"
    target.write_text("# A\n<!-- plan: configs/9m.yaml --world-size 8 -->\nold\n<!-- /plan -->\nrest\n")
    assert page.main([str(target), "--check"]) == 1 and "old" in target.read_text()
    assert page.main([str(target)]) == 0
    text = target.read_text()
    assert "old" not in text and "8 ranks = data 8" in text and text.endswith("<!-- /plan -->\nrest\n")
    assert page.main([str(target), "--check"]) == 0
    target.write_text("<!-- plan: configs/9m.yaml --world-size 7 -->\n<!-- /plan -->\n")
    assert page.main([str(target)]) == 2 and "expected a multiple" in capsys.readouterr().err


OFFLOAD = "deepspeed.zero_optimization.offload_optimizer.device=cpu"


def test_what_is_offloaded_counts_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    alone = [CONFIG, "--world-size", "1", "parallel.zero_stage=1", "train.activation_checkpointing=true"]
    home, away = (planned(capsys, *alone, *more)["stages"][0] for more in ([], [OFFLOAD]))
    weights = home["stored_weights"]
    assert home["host"] == 0
    assert away["host"] == pytest.approx(home["rest"] - away["rest"] + 2 * weights, rel=1e-6), "fp32 gradients"
    assert home["peak"] - away["peak"] > 12 * weights
    whole = away["transients"]["gradients in flight"] - home["transients"]["gradients in flight"]
    assert whole == 2 * weights, "stage 1 adds up whole gradients on the GPU, whose own part is at rest elsewhere"
    assert main([*alone, OFFLOAD]) == 0
    screen = capsys.readouterr().out
    assert "moments in host memory" in screen and "**all in host memory**" in screen and "GB/s to host memory" in screen


def test_a_slow_bus_makes_an_offloaded_step_longer() -> None:
    config = load_config(CONFIG, [OFFLOAD])
    fast, slow = (slowest_stage(config, 8, Machine(host_bandwidth=speed))[1] for speed in (1e12, 1e9))
    assert slow.optimizer > 5 * fast.optimizer and slow.products == fast.products


def test_7b_fits_one_small_gpu_only_when_offloaded(capsys: pytest.CaptureFixture[str]) -> None:
    one = [CONFIG, "--search", "--gpus", "1", "--memory", "24GB"]
    assert main(one) == 2 and "no layout of 1 GPUs fits" in capsys.readouterr().err
    assert main([*one, OFFLOAD]) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("flops", "0"), ("gpus-per-node", "-1"), ("network-bandwidth", "nan"), ("overlap", "1.5"), ("reserve", "inf")],
)
def test_figures_that_nothing_can_be_reckoned_with_are_one_line(capsys, option: str, value: str) -> None:
    try:
        code = main(["configs/9m.yaml", f"--{option}={value}"])
    except SystemExit as end:
        code = end.code
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert code == 2 and len(lines) == 1 and f"--{option}" in lines[0]


@pytest.mark.parametrize("option", ["--gpus", "--world-size", "--top"])
@pytest.mark.parametrize("value", ["0", "-2", "1.5", "many"])
def test_numbers_of_gpus_that_are_none_are_one_line(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([CONFIG, option, value])
    assert ended.value.code == 2 and f"is '{value}', expected a whole number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["inf", "1e999GB", "nan", "0", "-3", "lots"])
def test_a_memory_that_is_no_size_is_one_line(capsys, size: str) -> None:
    with pytest.raises(SystemExit):
        main(["configs/9m.yaml", "--search", "--gpus=2", f"--memory={size}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"--memory: '{size}' is not a size in bytes, expected one such as 500k, 2G or 40GiB")


CLUSTERS = sorted(Path("configs/clusters").glob("*.yaml"))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_no_neighbour_of_a_layout_that_is_called_the_fastest_is_faster(path: Path) -> None:
    """The search itself takes long; its neighbours have half or twice as many ranks to a layer, or another stage."""
    said = re.search(r"The fastest that fits, by\n# .* --search --gpus (\d+) --memory 80GB", path.read_text())
    own = load_config(path)
    if said is None:
        assert "parallel.tensor=4 a step is planned to take a tenth less" in path.read_text()
        return
    gpus = int(said[1])
    assert f"-{gpus}x" in path.name
    _, time = slowest_stage(own, gpus, Machine(), alike=False)
    for tensor in {max(1, own.parallel.tensor // 2), own.parallel.tensor, 2 * own.parallel.tensor}:
        for stage, micro in ((1, 1), (3, 1), (3, 2)):
            layout = [f"parallel.tensor={tensor}", f"parallel.zero_stage={stage}", f"parallel.sequence={tensor > 1}"]
            other = load_config(path, [*layout, f"train.micro_batch_size={micro * own.train.micro_batch_size}"])
            if other.train.global_batch_size % (other.train.micro_batch_size * gpus // tensor):
                continue
            plans, took = slowest_stage(other, gpus, Machine(), alike=False)
            assert took.total >= time.total or max(plan.peak for plan in plans) > 0.9 * 80e9, layout


def plan_of(*overrides: str) -> RankPlan:
    return plan_rank(load_config("configs/7b.yaml", ["sparsity.block=[128, 128]", *overrides]), 64)


def test_over_tiles_products_go_with_density_and_no_dense_weight_is_made() -> None:
    tiles, whole = plan_of(), plan_of("sparsity.compute=dense")
    dense = plan_rank(load_config("configs/7b.yaml"), 64, dense=True)
    assert whole.flops == dense.flops and tiles.flops.hardware < 0.4 * dense.flops.hardware
    less = 8 * (tiles.sparse_total - tiles.sparse_stored)  # three products and one that is made again, per token
    tokens = 1024 * 4096 // 64
    assert dense.flops.hardware - tiles.flops.hardware == pytest.approx(tokens * less, rel=1e-6)
    assert tiles.flops.over_tiles == pytest.approx(tokens * 8 * tiles.sparse_stored, rel=1e-6)
    assert "dense layer" in whole.transients and "dense layer" not in tiles.transients
    assert tiles.expanded == (0, 0, 0) and whole.expanded == (whole.sparse_total, whole.sparse_stored, whole.mask_bytes)
    assert "dense weights kept" not in plan_of("sparsity.weight_residency=dense").transients


@pytest.mark.parametrize(
    ("overrides", "over_tiles"),
    [
        ([], True),
        (["sparsity.block=[32, 32]"], True),  # 0.25 * 3.9
        (["sparsity.block=[16, 16]"], False),
        (["sparsity.block=[16, 16]", "sparsity.compute=tiles"], True),
        (["sparsity.block=[16, 16]", "train.device=cpu"], True),
        (["sparsity.block=[1, 1]", "sparsity.compute=tiles"], False),
        (["sparsity.density=0.6"], False),
        (["sparsity.compute=smet.compute.dense:Dense"], False),
    ],
)
def test_tiles_are_multiplied_where_that_is_likely_faster(overrides: list[str], over_tiles: bool) -> None:
    assert bool(plan_of(*overrides).flops.over_tiles) is over_tiles


def test_growth_by_gradients_has_its_peak_in_steps_with_an_update(capsys: pytest.CaptureFixture[str]) -> None:
    plan, usual = plan_of("sparsity.growth=gradient"), plan_of()
    assert plan.transients["dense gradient of a layer"] == 2 * 11008 * 4096
    assert plan.peak - plan.peak_between_updates >= plan.transients["gradients to grow by"]
    assert usual.peak_between_updates <= usual.peak and plan.peak_between_updates == usual.peak_between_updates
    assert main(["configs/7b.yaml", "sparsity.block=[128, 128]", "sparsity.growth=gradient", "--world-size", "64"]) == 0
    assert "| peak of steps without a topology update |" in capsys.readouterr().out
