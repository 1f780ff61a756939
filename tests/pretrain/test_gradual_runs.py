"""Runs from run files whose density falls: on two ranks, stopped and resumed, planned, inspected and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.changes import bend
from pretrain.config import config_from_dict
from pretrain.dry_run import dry_run
from pretrain.plan import plan_rank
from smet.config import SmetConfig
from smet.distribution import active_tiles
from smet.schedule import TopologySchedule
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus
from tools import export_hf, inspect_checkpoint
from tools.inference.model import load
from tools.watch.picture import Pictures

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "granet": {"sparsity": {"method": "granet", "density": 0.2, "initial_density": 0.5, "block": [2, 2]}},
    "gmp": {"sparsity": {"method": "gmp", "density": 0.25}, "parallel": {"zero_stage": 1, "tensor": 2}},
    "moved": {
        "sparsity": {"density": 0.2, "initial_density": 0.6, "topology_ranges": 2, "density_schedule": "linear"},
        "parallel": {"zero_stage": 3},
        "resumed": {"zero_stage": 1, "tensor": 2},
    },
}
"""The last one is stopped in one layout, and resumed in another."""
STEPS, INTERVAL = 12, 2


def jobs(folder: Path, kind: str) -> list[dict[str, Any]]:
    """A run to its end, and the same stopped where density falls and resumed (not of ``gmp``)."""
    made = []
    for name, stop_at in (("whole", 0), ("parts", 5), ("parts", 0))[: 1 if kind == "gmp" else 3]:
        one = settings(str(folder / "corpus"), folder / f"{kind}-{name}", parallel__zero_stage=2, train__steps=STEPS)
        own = {"update_interval": INTERVAL, "stop_fraction": 1.0, "warmup_steps": 3, **KINDS[kind]["sparsity"]}
        one |= {"sparsity": own, "parallel": KINDS[kind].get("parallel", one["parallel"])}
        one["model"] |= {
            "vocab_size": 98,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        one["train"]["stop_at"] = stop_at
        if stop_at == 0 and name == "parts":
            one["parallel"] = KINDS[kind].get("resumed", one["parallel"])
        one["evaluation"] = {"interval": 0}
        made.append(one)
    return made


Results = tuple[Path, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("gradual")
    write_corpus(folder / "corpus")
    everything = [(kind, one) for kind in KINDS for one in jobs(folder, kind)]
    ended: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for tensor in (1, 2):  # DeepSpeed does not forget a process's first layout
        same = [(kind, one) for kind, one in everything if one["parallel"].get("tensor", 1) == tensor]
        (found, _) = run_ranks(train_all, 2, [one for _, one in same], timeout=280.0)
        for (kind, _), one in zip(same, found, strict=True):
            ended[kind].append(one)
    return folder, ended


def densities(kind: str, folder: Path) -> tuple[SmetConfig, TopologySchedule]:
    sparsity = config_from_dict(jobs(folder, kind)[0]).sparsity
    return sparsity, TopologySchedule(sparsity, STEPS)


@pytest.mark.parametrize("kind", ["granet", "moved"])
def test_a_resumed_run_ends_where_it_would_have_ended(results: Results, kind: str) -> None:
    whole, _, resumed = results[1][kind]
    if kind == "moved":
        torch.testing.assert_close(resumed["losses"], whole["losses"], rtol=1e-3, atol=0)
        return
    assert resumed["losses"] == whole["losses"] and resumed["norms"] == whole["norms"]
    assert resumed["digests"] == whole["digests"] and resumed["masks"] == whole["masks"]
    assert len(set(whole["digests"].values())) >= 3


def test_more_steps_bend_the_density_and_it_is_said(results: Results) -> None:
    folder, _ = results
    old, new = (config_from_dict(one) for one in (jobs(folder, "granet")[0], jobs(folder, "granet")[0]))
    new.train.steps = 4 * STEPS
    found = bend(old.to_dict(), new, 8)
    assert found is not None and found.density == (0.2, TopologySchedule(new.sparsity, 4 * STEPS).density(10))
    said = f"density after the next topology update: 0.2 -> {found.density[1]:.3g}: closed tiles are grown again"
    assert any(said in line for line in found.lines(folder / "step-8"))
    new.train.steps = 9
    found = bend(old.to_dict(), new, 8)
    assert found is not None and found.density is None  # no update follows, which the run itself tells


@pytest.mark.parametrize("kind", KINDS)
def test_records_and_screen_say_how_much_is_open(results: Results, kind: str) -> None:
    folder, ended = results
    sparsity, schedule = densities(kind, folder)
    run = folder / f"{kind}-whole"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["density"] for record in records] == [schedule.density(step) for step in range(1, STEPS + 1)]
    for line in (run / "topology.jsonl").read_text().splitlines():
        report = json.loads(line)
        for found in report["density"].values():
            assert found == pytest.approx(schedule.density(report["step"]), abs=0.01)
        assert kind != "gmp" or report["grown"] == 0
    screen = ended[kind][0]["screen"]
    first = sparsity.first_density
    assert f"of which {first:.4g} is open and {sparsity.density:g} will be left; storage keeps its first size" in screen
    assert "tiles closed, " in screen and f", density {sparsity.density:.3g}" in screen
    if kind == "gmp":
        assert "changed nothing" not in screen
    else:
        assert f"of which {schedule.density(5):.4g} is open" in ended[kind][2]["screen"]


@pytest.mark.parametrize("kind", KINDS)
def test_storage_keeps_its_first_size_which_the_plan_prices(results: Results, kind: str) -> None:
    folder, _ = results
    config = config_from_dict(jobs(folder, kind)[0])
    measured = json.loads((folder / f"{kind}-whole" / "memory.json").read_text())
    plan = plan_rank(config, 2)
    assert plan.sparse_stored / plan.sparse_total == pytest.approx(config.sparsity.first_density, rel=0.01)
    for part, kinds in plan.at_rest.items():
        for what, size in kinds.items():
            found = measured["measured_per_rank"][0][part][what]
            assert found == pytest.approx(size, rel=0.05 if config.parallel.tensor > 1 else 0.01), (part, what)
    said = dry_run(config, world_size=2)
    assert f"density {config.sparsity.first_density:g} to {config.sparsity.density:g} in storage of its first" in said


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_closed_is_exported_as_zeros_and_counted_by_nobody(results: Results, kind: str, tmp_path: Path) -> None:
    folder, _ = results
    sparsity, _ = densities(kind, folder)
    run = folder / f"{kind}-{'whole' if kind == 'gmp' else 'parts'}"
    told = inspect_checkpoint.inspect(inspect_checkpoint.build_parser().parse_args([str(run)]))
    assert told["density_overall"] == pytest.approx(sparsity.density, rel=0.02) and told["closed"] > 0
    assert "of closed tiles are stored" in inspect_checkpoint.describe(told)
    assert sum(row["weights"] for row in told["ages"]) == pytest.approx(
        sum(told["density"][name] * n for name, n in sizes(told).items())
    )
    options = export_hf.build_parser().parse_args([str(run), str(tmp_path / "out"), "--tokenizer", "none"])
    report = export_hf.export(options)
    assert report["density"] == told["density_overall"] and f"density {report['density']:.4g}" in export_hf.describe(
        report
    )
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, density in told["density"].items():
        weight = weights[f"{name}.weight"]
        assert 0 < int((weight != 0).sum()) <= density * weight.numel() + 0.5
        if sparsity.topology_ranges == 1 and kind != "gmp":
            size = sparsity.block[0] * sparsity.block[1]
            assert density * weight.numel() == size * active_tiles(weight.numel() // size, sparsity.density)
    assert set(load_file(tmp_path / "out" / "masks.safetensors")) == set(told["density"])


def test_a_run_that_began_dense_is_read_and_drawn_by_what_is_open(results: Results) -> None:
    run = results[0] / "gmp-whole"
    told = inspect_checkpoint.inspect(inspect_checkpoint.build_parser().parse_args([str(run)]))
    found, whole = load(run), load(run, closed=True)
    assert found.sparse.keys() == told["density"].keys() and not whole.sparse
    for name, layer in found.sparse.items():
        assert layer.density == told["density"][name] < 0.3
        stored = whole.model.get_submodule(name)
        assert torch.equal(layer.orders.natural(layer.dense_weight()), stored.orders.natural(stored.dense_weight()))
    pictures = Pictures(run / "checkpoints")
    for name in pictures.of(None)["layers"]:
        picture = pictures.of(name)
        assert picture["open"] / picture["tiles"] == told["density"][name]
        assert picture["closed"] == picture["tiles"] - picture["open"] > 0


def sizes(told: dict[str, Any]) -> dict[str, int]:
    shapes = {"q_proj": 32 * 32, "k_proj": 16 * 32, "v_proj": 16 * 32, "o_proj": 32 * 32}
    return {name: shapes.get(name.rpartition(".")[2], 64 * 32) for name in told["density"]}
