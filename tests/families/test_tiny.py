"""A family of another shape trains, plans, dry-runs, saves, loads, exports and imports, by its own folder alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pretrain.__main__ import main as pretrain_main
from pretrain.config import load_config
from pretrain.models import family_of, inventory_of
from pretrain.plan import blocks_of, plan_rank
from pretrain.plan.memory import activations
from smet import sparsify
from smet.linear import sparse_layers
from tests.distributed import run_ranks
from tests.families.runs import FAMILY, STEPS, go_on, run_file, train
from tests.pages import ROOT
from tests.pretrain.runs import write_corpus
from tests.pretrain.test_checkpoint_layouts import whole_vectors
from tools.checkpoints.reader import Checkpoint
from tools.export_hf import main as export_main
from tools.import_hf import main as import_main
from tools.inspect_checkpoint import main as inspect_main
from tools.plan import main as plan_main

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"zero_stage": 1}),
    **{f"dp2-zero{stage}": (2, {"zero_stage": stage}) for stage in (1, 2, 3)},
    "tp2": (2, {"tensor": 2, "zero_stage": 2}),
    "tp2-zero3": (2, {"tensor": 2, "zero_stage": 3}),
    "tp2-sequence": (2, {"tensor": 2, "zero_stage": 1, "sequence": True}),
    "pp2": (2, {"pipeline": 2, "zero_stage": 1}),
}
OTHERS = [name for name in LAYOUTS if name != "one"]
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"model__changed": {"tied": True}, "train__activation_checkpointing": True},
    "documents": {"data__reset_attention": True, "data__eos_id": 2},
}
CASES = [(name, variant) for variant in VARIANTS for name in ("tp2-sequence", "pp2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, str]:
    """A run file of each layout, and of some layouts and of one rank for each variant."""
    corpus = write_corpus(folder / "corpus")
    found = {name: run_file(folder, name, corpus, parallel) for name, (_, parallel) in LAYOUTS.items()}
    for name, variant in [*CASES, *(("one", variant) for variant in VARIANTS)]:
        key = f"{name}-{variant}"
        found[key] = run_file(folder, key, corpus, LAYOUTS[name][1], **VARIANTS[variant])
    return found


@pytest.fixture(scope="module")
def outcomes(files: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Run to what each of its ranks found; one launch per number of ranks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for ranks in (1, 2):
        names = [name for name in files if (name.partition("-")[0] == "one") == (ranks == 1)]
        per_rank = run_ranks(train, ranks, [files[name] for name in names], timeout=400)
        found |= {name: [one[i] for one in per_rank] for i, name in enumerate(names)}
    return found


def test_the_inventory_is_the_built_model(files: dict[str, str]) -> None:
    for name in ("one", "one-tied"):
        config = load_config(files[name])
        with torch.device("meta"):
            built = family_of(config.model).model.Model(config.model)
        inventory = inventory_of(config.model)
        expected = [(key, tuple(parameter.shape)) for key, parameter in built.named_parameters()]
        assert [(weight.name, weight.shape) for weight in inventory.weights] == expected
        linears = {n: (m.out_features, m.in_features) for n, m in built.named_modules() if isinstance(m, nn.Linear)}
        assert dict(inventory.linears()) == linears


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "one"), [*((name, "one") for name in OTHERS), *((f"{n}-{v}", f"one-{v}") for n, v in CASES)]
)
def test_every_layout_trains_as_one_rank_does(outcomes: dict[str, list[dict[str, Any]]], name: str, one: str) -> None:
    many, alone = outcomes[name][0], outcomes[one][0]
    assert many["steps"] == alone["steps"] == list(range(1, STEPS + 1))
    assert many["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert many["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert many["validation"] == pytest.approx(alone["validation"], rel=1e-5)
    assert len(many["digests"]) == len(alone["digests"]) == 2
    assert alone["losses"][-1] < alone["losses"][0] - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_at_rest_and_sent_are_planned(
    files: dict[str, str], outcomes: dict[str, list[dict[str, Any]]], folder: Path, name: str
) -> None:
    config, world = load_config(files[name]), LAYOUTS[name][0]
    measured = json.loads((folder / name / "memory.json").read_text())["measured_per_rank"]
    plans = [plan_rank(config, world, outcomes[name][rank]["stage"]).at_rest for rank in range(world)]
    for part in ("sparse", "dense"):  # of all ranks together: masks so small fall unevenly on tensor-parallel ones
        planned, actual = (
            {kind: sum(rank[part][kind] for rank in ranks) for kind in ranks[0][part]} for ranks in (plans, measured)
        )
        assert planned == pytest.approx(actual, rel=0.01), part
    if world > 1:
        last = json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-2])
        sent = {kind: last[f"bytes_sent_{kind}"] for kind in plan_rank(config, world, 0).sent}
        assert plan_rank(config, world, 0).sent == pytest.approx(sent, rel=0.01, abs=64)


def test_activations_are_planned(files: dict[str, str]) -> None:
    config = load_config(files["one"], ["train.micro_batch_size=8"])
    model = sparsify(family_of(config.model).model.Model(config.model), config.sparsity, quiet=True).model
    x = torch.randn(8, config.data.seq_length, config.model.features, requires_grad=True)
    for block, layer in zip(blocks_of(config)[1:-2], model.stack, strict=True):
        held: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, held: dict[int, torch.Tensor] = held) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = layer(x)
        own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        actual = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)
        assert activations(config, [block], checkpointing=False, sequence=False).layers == pytest.approx(
            actual, rel=0.01
        )
        del result


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_dry_runs(files: dict[str, str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = LAYOUTS[name][0]
    for rank in range(world):
        arguments = [files[name], "--dry-run", "--world-size", str(world), "--rank", str(rank)]
        assert pretrain_main(arguments) == 0, capsys.readouterr().err
        assert "all checks passed" in capsys.readouterr().out


def test_the_planner_prices_and_searches_its_layouts(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_main([files["tp2"], "--world-size", "2"]) == 0
    assert "tensor 2" in capsys.readouterr().out
    assert plan_main([files["one"], "--search", "--gpus", "2", "--memory", "8GB"]) == 0
    assert "\n| 1 | 2 | 1 | 1 |" in capsys.readouterr().out, "tensor 1, pipeline 2, one data-parallel rank, ZeRO-1"


@pytest.mark.slow
def test_the_command_line_trains_it_by_its_run_file_alone(files: dict[str, str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pretrain",
        files["one"],
        "train.stop_at=2",
        f"train.output_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"family: {FAMILY}" in (tmp_path / "run" / "config.yaml").read_text()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def checkpoint(files: dict[str, str], name: str, step: int = 6) -> Path:
    return Path(load_config(files[name]).train.output_dir) / "checkpoints" / f"step-{step:08d}"


@pytest.mark.slow
@pytest.mark.usefixtures("outcomes")
def test_what_one_layout_saves_every_other_loads(files: dict[str, str]) -> None:
    saved = [str(checkpoint(files, name)) for name in ("tp2", "dp2-zero3", "pp2")]
    losses: dict[str, list[float]] = {path: [] for path in saved}
    for ranks, names in ((1, ["one"]), (2, ["dp2-zero3", "tp2", "pp2"])):
        jobs = [(files[name], path) for name in names for path in saved]
        for per_rank in run_ranks(go_on, ranks, jobs, timeout=400):
            for (name, path), (wrong, loss) in zip(jobs, per_rank, strict=True):
                assert not wrong, f"{name} reading {path}: {wrong[:3]}"
                losses[path].append(loss)
    for found in losses.values():
        assert found == pytest.approx([found[0]] * len(found), rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("outcomes")
def test_it_is_exported_and_imported_through_its_own_files(
    files: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = checkpoint(files, "tp2", STEPS), folder / "exported"
    assert export_main([str(source), str(out), "--tokenizer", "none", "--family", FAMILY]) == 0
    tensors, family = load_file(out / "model.safetensors"), family_of(load_config(files["tp2"]).model)
    assert "transformer.h.0.mix.give.bias" in tensors and "transformer.last.weight" in tensors
    raw = json.loads((out / "config.json").read_text())
    assert raw["model_type"] == "tiny" and raw["gated_layers"] == [0, 2]

    # What a reader of those files builds computes what the run's own model does.
    config = family.config(**{**family.hf.from_config(out / "config.json", raw, None), "family": FAMILY})
    theirs = family.model.Model(config)
    theirs.load_state_dict({name: tensors[family.hf.file_name(name)] for name, _ in theirs.named_parameters()})
    own = family.model.Model(load_config(files["tp2"]).model)
    read = Checkpoint(source, FAMILY)
    own.load_state_dict({weight.name: read.dense_weight(weight) for weight in read.weights})
    tokens = torch.arange(64).view(2, 32) % 97
    assert torch.equal(theirs(tokens), own(tokens))

    # And back: every weight is the one that was exported, to the bit.
    assert import_main([str(out), str(folder / "imported"), "--density", "1", "--family", FAMILY]) == 0
    back = Checkpoint(folder / "imported" / "step-00000000", FAMILY)
    assert all(torch.equal(back.dense_weight(w), tensors[family.hf.file_name(w.name)]) for w in back.weights)
    assert f"family: {FAMILY}" in (folder / "imported" / "model.yaml").read_text()
    capsys.readouterr()
    assert inspect_main([str(source), "--family", FAMILY]) == 0
    assert "stack.*.think.narrow: 0.2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("outcomes")
def test_its_biases_and_norms_are_trained(files: dict[str, str]) -> None:
    """Beside its sparse layers: nothing of it stands still, and nothing of it went missing in a layout."""
    first, last = (whole_vectors(checkpoint(files, "tp2-sequence", step)) for step in (6, STEPS))
    one = whole_vectors(checkpoint(files, "one", STEPS))
    assert last.keys() == one.keys()
    vectors = [name for name in last if name.endswith((".bias", ".shift", ".scale"))]
    assert len(vectors) == 3 * (2 * 2 + 4 + 3) - 1 + 2
    for name in vectors:
        assert not torch.equal(first[name], last[name]), name
        if not name.endswith("know.bias"):  # softmax does not feel it: its gradient is rounding
            assert (last[name] - one[name]).norm() <= 1e-3 * one[name].norm(), name


def test_a_sparse_row_parallel_layer_adds_its_bias_behind_the_sum() -> None:
    """Which ``behind_product`` is for; in one process there is nothing to sum."""
    layer = sparsify(nn.Sequential(nn.Linear(8, 4)), density=0.5, quiet=True).model[0]
    x = torch.randn(3, 8)
    plain = layer(x)
    layer.behind_product = lambda product: 2 * product
    torch.testing.assert_close(layer(x) - layer.bias, 2 * (plain - layer.bias))
    assert list(sparse_layers(nn.Sequential(layer))) == ["0"]
