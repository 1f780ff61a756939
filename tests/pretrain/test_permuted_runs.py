"""Runs with permuted features: one function at every layout, resumed exactly, and never gone on with another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.changes import changes, completed
from pretrain.checkpoint.folder import MANIFEST, published
from pretrain.checkpoint.manifest import manifest_digest, to_text
from pretrain.checkpoint.permutation import permutation_digest
from pretrain.config import config_from_dict, load_config
from pretrain.data.corpus import open_corpus
from pretrain.errors import CheckpointError, ConfigError
from pretrain.first_masks import SAMPLES, _choose
from pretrain.layout import Layout
from pretrain.parallel.part import Builder
from smet.convert import densify
from smet.linear import sparse_layers
from smet.mask import TileGrid, unpack
from smet.permutation import orders_of
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train, write_corpus
from tools.checkpoints.reader import Checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train", tokens=3000)


def job(corpus: str, folder: Path, **more: Any) -> dict[str, Any]:
    given = settings(corpus, folder, **{"evaluation__interval": 0, "train__steps": 9, "train__global_batch_size": 4})
    given["sparsity"] |= {"block": [4, 4], "update_interval": 3, "prune_schedule": "constant", "prune_start": 0.3}
    given["sparsity"] |= {
        "density": 0.5,
        "permute": "both",
        "topology_ranges": 2,
        "growth": "gradient",
        "mask_init": "magnitude",
    }
    given["model"] |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    given["model"]["vocab_size"] = 98
    for dotted, value in more.items():
        section, _, key = dotted.partition("__")
        given[section] = {**given.get(section, {}), key: value}
    return given


def steps(jobs: list[dict[str, Any]]) -> list[Any]:
    """Train jobs one after the other; of one that is refused, why."""
    found: list[Any] = []
    for one in jobs:
        try:
            found.append(train(one))
        except (CheckpointError, ConfigError) as error:
            found.append(str(error))
    return found


@pytest.fixture(scope="module")
def runs(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs of two ranks, and then of one that goes on from what they saved."""
    root = tmp_path_factory.mktemp("runs")

    def named(name: str, folder: str = "", **more: Any) -> dict[str, dict[str, Any]]:
        return {name: job(corpus, root / (folder or name), **more)}

    def after(name: str) -> str:
        return str(root / name / "checkpoints" / "step-00000009")

    two = {
        **named("ZeRO-2", parallel__zero_stage=2),
        **named("tensor", "moved", parallel__tensor=2, train__stop_at=4),
    }
    one = {
        **named("whole"), **named("moved"),
        **named("first part", "parts", train__stop_at=4), **named("resumed", "parts"),
        **named("other seed", "seed", sparsity__seed=1, checkpoint__resume=after("whole")),
        **named("no more", "none", sparsity__permute="none", checkpoint__resume=after("ZeRO-2")),
        **named("in its folder", "whole", sparsity__permute="inputs"),
    }  # fmt: skip
    found: dict[str, Any] = {"root": root}
    for ranks, jobs in ((2, two), (1, one)):
        found |= dict(zip(jobs, run_ranks(steps, ranks, list(jobs.values()))[0], strict=True))
    return found


def test_every_layout_trains_the_same_function(runs: dict[str, Any]) -> None:
    """The recorded batch of two tensor-parallel ranks has its loss on one, which else refuses it; and all goes on."""
    assert "resumed from" in runs["moved"]["screen"] and "block 4x4, permuted both" in runs["whole"]["screen"]
    theirs = Checkpoint(runs["root"] / "whole")
    for name in ("ZeRO-2", "moved"):
        assert runs[name]["losses"] == pytest.approx(runs["whole"]["losses"], rel=1e-5), name
        ours = Checkpoint(runs["root"] / name)
        for weight in ours.weights:
            mine, other = ours.dense_weight(weight), theirs.dense_weight(weight)
            assert torch.equal(mine != 0, other != 0) or not weight.is_sparse
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
        assert ours.manifest["permutation"] == theirs.manifest["permutation"]


def test_a_resumed_run_is_the_uninterrupted_one(runs: dict[str, Any]) -> None:
    for what in ("losses", "norms", "digests", "masks"):
        assert runs["resumed"][what] == runs["whole"][what]


def test_other_permutations_are_refused_with_what_the_checkpoint_has(runs: dict[str, Any]) -> None:
    digest = Checkpoint(runs["root"] / "whole").manifest["permutation"]
    assert f"has features permuted otherwise (seed 0, this run's is 1; digest {digest}, this" in runs["other seed"]
    assert runs["other seed"].endswith("to go on: the same command with sparsity.seed=0")
    assert "(permute both, this run's is none; digest" in runs["no more"] and "run's is none); to go" in runs["no more"]
    assert "already holds another run (sparsity.permute: 'both' -> 'inputs')" in runs["in its folder"]
    assert not (runs["root"] / "seed" / "config.yaml").exists()


def test_a_manifest_of_other_permutations_is_refused(runs: dict[str, Any], corpus: str, tmp_path: Path) -> None:
    """As if this version drew them otherwise than the one that wrote it."""
    whole = runs["root"] / "whole"
    path = published(whole / "checkpoints")[-1]
    manifest = json.loads((path / MANIFEST).read_text())
    config = load_config(whole / "config.yaml")
    assert manifest["permutation"] == permutation_digest(config.model, config.sparsity)
    before = (path / MANIFEST).read_text()
    manifest["permutation"] = "0" * 32
    manifest["self"] = manifest_digest(manifest)
    try:
        (path / MANIFEST).write_text(to_text(manifest))
        with pytest.raises(
            CheckpointError, match=r"permuted otherwise than the settings in its state.json say \(digest 0"
        ):
            Checkpoint(path)
        (told,) = run_ranks(what_stops_a_start, 1, job(corpus, tmp_path / "run", checkpoint__resume=str(path)))
        assert "(by another version of the program; digest 000" in told and "that its manifest.json names" in told
    finally:
        (path / MANIFEST).write_text(before)


def what_stops_a_start(one: dict[str, Any]) -> str:
    (found,) = steps([one])
    return str(found)


def test_settings_without_the_key_mean_none(corpus: str, tmp_path: Path) -> None:
    config = config_from_dict(job(corpus, tmp_path, sparsity__permute="none"))
    saved = config.to_dict()
    del saved["sparsity"]["permute"]
    assert changes(completed(saved, "llama"), config.to_dict()) == []
    assert permutation_digest(config.model, config.sparsity) is None


def test_what_tensor_parallel_ranks_could_not_have_whole_is_refused(corpus: str, tmp_path: Path) -> None:
    given = job(corpus, tmp_path, parallel__tensor=2, sparsity__topology_ranges=1)
    with pytest.raises(
        ConfigError, match="ranges is 1 with sparsity.permute 'both', expected a multiple of parallel.ten"
    ):
        config_from_dict(given)
    given = job(corpus, tmp_path, sparsity__topology_ranges=16, sparsity__block=[2, 4], sparsity__balance="never")
    given["model"]["intermediate_size"] = 40
    with pytest.raises(
        ConfigError, match="16 with sparsity.permute 'both', expected a number that divides the rows .* 40 "
    ):
        config_from_dict(given)
    config_from_dict(job(corpus, tmp_path, sparsity__block=[1, 1], parallel__tensor=2, sparsity__topology_ranges=1))


def test_masks_that_the_dense_model_chooses_are_of_stored_features(corpus: str, tmp_path: Path) -> None:
    config = config_from_dict(job(corpus, tmp_path, sparsity__mask_init="snip", sparsity__balance="never"))
    data = open_corpus(corpus, config.data.seq_length, config.data.seed, False)
    masks = _choose(config, data)
    plain = config_from_dict(job(corpus, tmp_path, sparsity__permute="none", sparsity__density=1.0))
    model = Builder(plain, Layout(1, 0, 1, 0, torch.device("cpu"), None, None)).whole()
    turned = {name: layer.transposed for name, layer in sparse_layers(model).items()}
    for name in turned:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, densify(model.get_submodule(name)))
    for number in range(SAMPLES):
        model.loss(torch.from_numpy(data.sample(number)).long().unsqueeze(0)).backward()
    assert masks.keys() == turned.keys()
    for name, bits in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
        orders = orders_of(name, tuple(layer.weight.shape), turned[name], config.sparsity)
        scores = orders.stored((layer.weight * layer.weight.grad).detach())
        scores = scores.t() if turned[name] else scores
        grid = TileGrid(*scores.shape, (4, 4))
        scores = grid.to_tiles(scores.abs()).sum(1)
        mask = unpack(bits, grid.tiles)
        assert int(mask.sum()) == grid.tiles // 2 and float(scores[mask].min()) >= float(scores[~mask].max()) * (
            1 - 1e-4
        )
