"""Criteria named in a run file: one's own and built-in ones that need gradients, on two ranks, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.changes import bend
from pretrain.config import config_from_dict
from pretrain.errors import ConfigError
from pretrain.plan import plan_rank
from tests.distributed import RankError, run_ranks
from tests.pretrain.runs import settings, train, train_all, what_stops, write_corpus
from tools.checkpoints.reader import Checkpoint

OWN = "tests.smet.own_criteria"
KINDS: dict[str, dict[str, Any]] = {
    "own": {"prune": f"{OWN}:faded", "growth": f"{OWN}:mixed", "prune_schedule": f"{OWN}:halving",
            "mask_init": f"{OWN}:first_ones"},
    "momentum": {"prune": "saliency", "growth": "momentum"},
    "snip": {"mask_init": "snip"},
    "protected": {"prune": "age-protected", "growth": "gradient", "mask_init": "magnitude"},
}  # fmt: skip


def jobs(folder: Path, kind: str) -> list[dict[str, Any]]:
    """A run to its end, and the same stopped between two updates and resumed."""
    made = []
    for name, stop_at in (("whole", 0), ("parts", 7), ("parts", 0)):
        one = settings(str(folder / "corpus"), folder / f"{kind}-{name}", parallel__zero_stage=2, train__steps=10)
        one["sparsity"] |= {"update_interval": 3, "prune_start": 0.3, **KINDS[kind]}
        one["train"]["stop_at"] = stop_at
        made.append(one)
    return made


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("criteria")
    write_corpus(folder / "corpus")
    everything = [one for kind in KINDS for one in jobs(folder, kind)]
    (ended, _) = run_ranks(train_all, 2, everything, timeout=280.0)
    return folder, {kind: ended[3 * number : 3 * number + 3] for number, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_resumed_ends_where_it_would_have_ended(
    results: tuple[Path, dict[str, list[dict[str, Any]]]], kind: str
) -> None:
    whole, _, resumed = results[1][kind]
    assert resumed["losses"] == whole["losses"] and resumed["digests"] == whole["digests"]
    assert kind != "snip" or "first masks by snip: the dense model computes once" in whole["screen"]
    assert "first masks by" not in resumed["screen"]
    assert resumed["masks"] == whole["masks"] and sorted(whole["digests"]) == [3, 6, 9]


def test_the_functions_decide(results: tuple[Path, dict[str, list[dict[str, Any]]]]) -> None:
    folder, ended = results
    assert len({ended[kind][0]["masks"] for kind in KINDS}) == len(KINDS)
    lines = (folder / "own-whole" / "topology.jsonl").read_text().splitlines()
    assert [json.loads(line)["fraction"] for line in lines] == [0.15, 0.075, 0.0375]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_knows_what_they_need(results: tuple[Path, dict[str, list[dict[str, Any]]]], kind: str) -> None:
    folder, _ = results
    measured = json.loads((folder / f"{kind}-whole" / "memory.json").read_text())
    config = config_from_dict(jobs(folder, kind)[0])
    plan = plan_rank(config, 2)
    for rank in range(2):
        for part, kinds in plan.at_rest.items():
            for what, size in kinds.items():
                assert measured["measured_per_rank"][rank][part][what] == pytest.approx(size, rel=0.01), (part, what)
    dense = 4 * sum(-(-weight // 2) for weight in 2 * [24 * 24, 8 * 24, 8 * 24, 24 * 24, 36 * 24, 36 * 24, 24 * 36])
    needs_dense = kind in ("own", "momentum", "protected")
    assert plan.transients.get("gradients to grow by", 0) == (dense if needs_dense else 0)
    assert ("gradients to prune by" in plan.transients) == (kind in ("own", "momentum"))
    plain = plan_rank(
        config_from_dict({**jobs(folder, kind)[0], "sparsity": {"density": 0.29, "update_interval": 3}}), 2
    )
    assert (plan.before_training > 0) == (kind == "snip")
    more = plan.at_rest["sparse"]["moments"] - plain.at_rest["sparse"]["moments"]
    assert more == (dense if kind == "momentum" else 0)


def test_a_name_that_stands_for_nothing_ends_in_one_line(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    one = settings(str(tmp_path / "corpus"), tmp_path / "run", sparsity__growth="no.such.module:f")
    with pytest.raises(RankError, match=r"sparsity.growth is 'no.such.module:f': module .* cannot be imported"):
        run_ranks(train, 1, one)
    one = settings(str(tmp_path / "corpus"), tmp_path / "run", sparsity__prune="magnitud")
    with pytest.raises(ConfigError, match=r"sparsity.prune is 'magnitud', expected one of magnitude, saliency"):
        config_from_dict(one)


@pytest.mark.parametrize("residency", ["sharded", "replicated"])
def test_first_masks_that_differ_or_fail_on_one_rank_stop_all_of_them(tmp_path: Path, residency: str) -> None:
    write_corpus(tmp_path / "corpus")
    for function, told in (("each_its_mask", "chooses differently on the ranks"), ("mask_fails_on_one", "rank 1")):
        one = settings(str(tmp_path / "corpus"), tmp_path / function, parallel__zero_stage=2)
        one["sparsity"] |= {"mask_init": f"{OWN}:{function}", "mask_residency": residency}
        first, second = run_ranks(what_stops, 2, one)
        assert told in first and told in second


SPLIT = {"tensor": ("prune", "growth", "prune_schedule"), "pipeline": ("prune", "mask_init")}
FAILING = {
    "prune": ("fails_on_one", "fail on layer model.layers.0.self_attn.q_proj (ValueError: rank 1 has had enough)"),
    "growth": ("grows_nothing_on_one", ":grows_nothing_on_one' gives a NoneType for layer model.layers.0"),
    "prune_schedule": ("late", "fails at step 5 (ValueError: too late for rank 1)"),
    "mask_init": ("mask_fails_on_one", "(ValueError: rank 1 has no mask)"),
}  # fmt: skip


def what_stops_each(jobs: list[dict[str, Any]]) -> list[str]:
    return [what_stops(one) for one in jobs]


@pytest.mark.parametrize("split", SPLIT)
def test_a_function_that_fails_on_one_shard_or_stage_stops_all_ranks_with_one_line(tmp_path: Path, split: str) -> None:
    """Its data-parallel group, here the failing rank alone, agrees by itself; the others have to be told."""
    write_corpus(tmp_path / "corpus")
    made = []
    for setting in SPLIT[split]:
        one = settings(str(tmp_path / "corpus"), tmp_path / setting, evaluation__interval=0)
        one["model"] |= {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        one["model"]["num_key_value_heads"] = 2
        one["sparsity"] |= {"density": 0.25, "update_interval": 3, setting: f"{OWN}:{FAILING[setting][0]}"}
        one["parallel"] = {"zero_stage": 1, split: 2}
        made.append(one)
    first, second = run_ranks(what_stops_each, 2, made, timeout=60.0)
    assert first == second
    for line, setting in zip(first, SPLIT[split], strict=True):
        told = FAILING[setting][1].replace("layers.0", "layers.1" if split == "pipeline" else "layers.0")
        assert line.startswith("rank 1 of 2: sparsity.") and told in line and "\n" not in line, setting
        assert f"sparsity.{setting} '{OWN}:" in line


def test_tools_read_a_checkpoint_with_means_of_gradients(
    results: tuple[Path, dict[str, list[dict[str, Any]]]],
) -> None:
    folder, _ = results
    checkpoint = Checkpoint(folder / "momentum-whole")
    means = [name for name in checkpoint.vectors if name.endswith(".mean_gradient")]
    assert len(means) == 14 and all(bool(checkpoint.vector(name).any()) for name in means)


def test_what_a_checkpoint_names_is_compared_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_criteria.py").write_text("raise SystemExit('code of a checkpoint ran')")
    monkeypatch.syspath_prepend(tmp_path)
    own = config_from_dict(settings("corpus", tmp_path / "run"))
    names = ("prune", "growth", "prune_schedule", "mask_init")
    saved = {**own.to_dict(), "sparsity": own.to_dict()["sparsity"] | dict.fromkeys(names, "planted_criteria:f")}
    found = bend(saved, own, 5)
    assert found is not None and {change.key for change in found.changed} == {f"sparsity.{name}" for name in names}
    assert any("prune fraction of the next topology update: unknown -> " in line for line in found.lines(tmp_path))
    assert json.loads(json.dumps(found.event(), allow_nan=False))["prune_fraction"][0] is None


def first_masks_of(jobs: list[dict[str, Any]]) -> list[str]:
    """Digest of the first masks of each job over all ranks' shards and stages: its losses tell the rest."""
    return [train(one)["losses"][0] for one in jobs]


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{"zero_stage": 3}, {"zero_stage": 1, "tensor": 2}, {"zero_stage": 1, "pipeline": 2}]
)
def test_first_masks_by_the_dense_model_are_the_same_in_every_layout(tmp_path: Path, parallel: dict[str, int]) -> None:
    write_corpus(tmp_path / "corpus")
    made = []
    for ranks in (1, 2):
        made.append([])
        for mask in ("magnitude", "snip", "synflow"):
            one = settings(str(tmp_path / "corpus"), tmp_path / f"{mask}-{ranks}", train__steps=2)
            one["sparsity"] |= {"mask_init": mask, "density": 0.25}
            one["model"] |= {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
            one["model"]["vocab_size"] = 128
            one["parallel"] = parallel if ranks == 2 else {"zero_stage": 1}
            made[-1].append(one)
    (alone,) = run_ranks(first_masks_of, 1, made[0])
    (first, _) = run_ranks(first_masks_of, 2, made[1])
    assert first == pytest.approx(alone, rel=1e-5) and len({round(loss, 6) for loss in alone}) == 3


@pytest.mark.slow
def test_means_of_gradients_go_to_any_layout(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    made = []
    for name, stop_at, parallel in (
        ("whole", 0, {"zero_stage": 2}),
        ("three", 7, {"zero_stage": 2}), ("three", 0, {"zero_stage": 3}),
        ("split", 7, {"zero_stage": 2}), ("split", 0, {"zero_stage": 1, "tensor": 2}),
    ):  # fmt: skip
        one = settings(str(tmp_path / "corpus"), tmp_path / name, train__steps=10)
        one["sparsity"] |= {"update_interval": 3, "prune_start": 0.3, "growth": "momentum", "topology_ranges": 2}
        one["sparsity"]["density"] = 0.25
        one["model"] |= {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        one["model"]["num_key_value_heads"] = 2
        one["train"]["stop_at"], one["parallel"] = stop_at, parallel
        made.append(one)
    (whole, _, three, _, split), _ = run_ranks(train_all, 2, made, timeout=280.0)
    for other in (three, split):
        assert other["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert "mean gradients" not in other["screen"], "none were left out"
    assert three["digests"] == whole["digests"]
