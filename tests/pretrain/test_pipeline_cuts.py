"""Every cut of a small pipeline trains the model of one rank, stages without a decoder layer included."""

from __future__ import annotations

import contextlib
import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import pretrain.callbacks.checkpointing
import pretrain.plan.cut
from pretrain.config import checks, config_from_dict
from pretrain.config.layouts import _stages_fit
from pretrain.dry_run import dry_run
from pretrain.errors import LaunchError
from pretrain.parallel.groups import require_alike
from pretrain.run import prepared
from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt, write_run_file
from tests.pretrain.runs import layout_of, settings, train, write_corpus

STEPS = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"model__tie_word_embeddings": True},
    "packed": {"data__reset_attention": True, "data__eos_id": 82, "model__tie_word_embeddings": True},
    "dense": {"sparsity__density": 1.0, "sparsity__update_interval": 0},
    "one-layer-dense": {"sparsity__exclude": ["*embed*", "*lm_head*", "*layers.1*"]},
    "erk": {"sparsity__distribution": "erk", "train__precision": "bf16"},
    "offloaded": {"deepspeed__zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
    "by-gradient": {"sparsity__growth": "gradient", "train__activation_checkpointing": True},
}


def every_cut(stages: int) -> list[list[int]]:
    """Of embedding, two decoder layers, norm and head."""
    return [[0, *inner, 5] for inner in combinations(range(1, 5), stages - 1)]


ENDS = [[0, 1, 5], [0, 4, 5]]
"""The embedding, or the head, alone in its stage."""
CASES: dict[int, list[tuple[str, dict[str, Any], list[int]]]] = {
    1: [(variant, {}, [0, 5]) for variant in VARIANTS],
    2: [(variant, {}, bounds) for variant in ("untied", "tied") for bounds in every_cut(2)]
    + [(variant, {}, bounds) for variant in ("packed", "dense", "one-layer-dense", "erk", "offloaded", "by-gradient")
       for bounds in ENDS]
    + [("one-layer-dense", {}, [0, 2, 5])],
    3: [(variant, {}, bounds) for variant in ("untied", "tied") for bounds in every_cut(3)],
    4: [(variant, {}, bounds) for variant in ("untied", "packed") for bounds in every_cut(4)]
    + [("tied", {"pipeline": 2}, bounds) for bounds in ENDS]
    + [("untied", {"pipeline": 2, "tensor": 2, "sequence": True}, bounds) for bounds in ENDS],
}  # fmt: skip
"""Ranks to (variant, parallel section where it is not all stages, cut)."""
KEYS = [(ranks, number) for ranks in (2, 3, 4) for number in range(len(CASES[ranks]))]


def job(corpus: str, folder: Path, variant: str, **parallel: Any) -> dict[str, Any]:
    changes = {"train__steps": STEPS, "train__micro_batch_size": 2, "sparsity__update_interval": 2}
    given = settings(corpus, folder, **{**changes, **VARIANTS[variant]})
    given["model"].update(vocab_size=98, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    given["model"]["num_key_value_heads"] = 2
    given["sparsity"].setdefault("topology_ranges", 2)  # so that two tensor-parallel ranks decide as one
    given["evaluation"] = {"interval": 2, "samples": 4}
    given["optimizer"]["gradient_clipping"] = 0.3  # below the gradients' norms: a wrong norm would change the losses
    return {**given, "parallel": {"zero_stage": 1, **parallel}}


def train_cut(jobs: list[tuple[dict[str, Any], list[int]]]) -> list[dict[str, Any]]:
    """In every rank: each job with its pipeline cut where the test says, into more stages than layers if it says so."""
    found = []
    for given, bounds in jobs:
        allowed = mock.patch.object(checks, "_CHECKS", tuple(one for one in checks._CHECKS if one is not _stages_fit))
        with allowed, mock.patch.object(pretrain.plan.cut, "cut", lambda *_, forced=bounds: forced):
            found.append(train(given))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("cuts") / "corpus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def outcomes(corpus: str, folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(ranks, number of the case) -> outcome. One launch per number of ranks; the runs are in ``folder``."""
    found = {}
    for ranks, cases in CASES.items():
        jobs = [
            (job(corpus, folder / f"{ranks}-{number}", variant, **{"pipeline": ranks, **parallel}), bounds)
            for number, (variant, parallel, bounds) in enumerate(cases)
        ]
        for number, outcome in enumerate(run_ranks(train_cut, ranks, jobs, timeout=400)[0]):
            found[ranks, number] = outcome
    return found


@pytest.mark.parametrize("key", KEYS, ids=lambda key: "-".join(map(str, [key[0], *CASES[key[0]][key[1]][::2]])))
def test_a_forced_cut_trains_as_one_rank_does(outcomes: Any, key: tuple[int, int]) -> None:
    variant, _, bounds = CASES[key[0]][key[1]]
    one, many = outcomes[1, list(VARIANTS).index(variant)], outcomes[key]
    close = 1e-5 if variant != "erk" else 5e-3
    assert many["losses"] == pytest.approx(one["losses"], rel=close)
    assert many["norms"] == pytest.approx(one["norms"], rel=10 * close)
    assert many["validation"] == pytest.approx(one["validation"], rel=close)
    assert len(many["losses"]) == STEPS and min(one["norms"]) > 0.3
    assert list(many["digests"]) == list(one["digests"]) == ([] if variant == "dense" else [2])
    layers = [sum(1 <= block < 3 for block in range(*ends)) for ends in zip(bounds, bounds[1:], strict=False)]
    assert f"stages of {', '.join(map(str, layers[:-1]))} and {layers[-1]} decoder layers" in many["screen"]
    weights = [text.split("SMET: ")[1].split(" active")[0] for text in (one["screen"], many["screen"])]
    assert weights[0] == weights[1], "the summary counts the whole model, wherever its layers are"


def test_bytes_and_checkpoints_know_no_placeholder(outcomes: Any, folder: Path) -> None:
    assert outcomes
    for bounds, empty in zip(ENDS, (0, 1), strict=True):  # the stage without a sparse layer
        number = CASES[2].index(("untied", {}, bounds))
        memory = json.loads((folder / f"2-{number}" / "memory.json").read_text())
        assert set(memory["measured_per_rank"][empty]["sparse"].values()) == {0}
        assert memory["measured_per_rank"][empty]["dense"]["weights"] > 0
        index = (folder / f"2-{number}" / "checkpoints" / f"step-{STEPS:08d}" / ".metadata").read_bytes()
        assert b"lm_head.weight" in index and b"placeholder" not in index


def go_on(first: tuple[Any, ...], second: tuple[Any, ...]) -> list[dict[str, Any]]:
    """In every rank: train ``first``, whose checkpoint is as earlier versions wrote it; go on from it as ``second``."""
    original = pretrain.callbacks.checkpointing.state_of

    def older(trainer: Any) -> dict[str, Any]:
        return {**original(trainer), "block_costs": [0.0, 1.0, 1.0, 0.0, 8.75]}

    with mock.patch.object(pretrain.callbacks.checkpointing, "state_of", older):
        (begun,) = train_cut([first])
    return [begun, *train_cut([second])]


def test_any_cut_goes_on_from_any_other(outcomes: Any, corpus: str, tmp_path: Path) -> None:
    first = job(corpus, tmp_path / "run", "tied", pipeline=2)
    first["train"]["stop_at"] = 2
    second = {**first, "train": {**first["train"], "stop_at": 0}}
    found = run_ranks(go_on, 2, (first, [0, 1, 5]), (second, [0, 4, 5]))[0][-1]
    assert found["steps"] == [1, 2, 3] and "resumed from" in found["screen"]
    assert found["losses"] == pytest.approx(outcomes[1, list(VARIANTS).index("tied")]["losses"], rel=1e-5)


def names_held(given: dict[str, Any]) -> list[str]:
    """In every rank: the modules of its stage."""
    config = config_from_dict(given)
    with contextlib.redirect_stdout(io.StringIO()), prepared(config, layout_of(config)) as trainer:
        return [name for name, _ in trainer.engine.model.named_modules()]


def test_run_and_dry_run_cut_alike(corpus: str, tmp_path: Path) -> None:
    """A head that costs more than the layers: a stopwatch put all of these into the first stage."""
    given = job(corpus, tmp_path / "run", "untied", pipeline=2)
    given["model"].update(num_hidden_layers=3, vocab_size=4096)
    for rank, held in enumerate(run_ranks(names_held, 2, given)):
        planned = json.loads(dry_run(config_from_dict(given), rank, 2, as_json=True))["plan"]["blocks"]
        assert [name for name in held if name in planned] == list(planned)
        others = {"model.embed_tokens", *(f"model.layers.{n}" for n in range(3)), "model.norm", "lm_head"}
        assert not others.difference(planned).intersection(held)
        assert len([name for name in planned if ".layers." in name]) == 2 - rank


GROUPS = "dense (float32, master weights float32); vectors (float32, master weights float32)"


def refused(arguments: list[str]) -> Attempt:
    """In every rank: the program, whose last stage has nothing sparse, and which does not make up for that."""
    lonely = mock.patch("pretrain.parallel.groups.fill_up_groups", lambda groups, *_: groups)
    with lonely, mock.patch.object(pretrain.plan.cut, "cut", lambda *_: [0, 3, 5]):
        return attempt(arguments, arguments[0])


def test_ranks_whose_groups_differ_do_not_start(corpus: str, tmp_path: Path) -> None:
    changes = {"parallel__pipeline": 2, "parallel__zero_stage": 1}
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", **changes)
    first, second = run_ranks(refused, 2, [file])
    sparse = "sparse-0.29 (float32, master weights float32)"
    assert first.sole_error().startswith(
        f"the optimizer groups of rank 1 are {GROUPS}, expected those of rank 0, {GROUPS}; {sparse}: ranks would wait "
        "for each other for ever; see that every host runs the same revision"
    )
    assert (second.code, second.err) == (2, "") and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("own", "others", "text"),
    [
        ({"groups": ["a (f)", "b (f)"]}, {"groups": ["b (f)", "a (f)"]}, "rank 1 are b (f); a (f), expected those of"),
        ({"groups": ["a (f)"]}, {"groups": ["a (g)"]}, "the optimizer groups of rank 1 are a (g), expected those of"),
        ({"groups": ["a (f)"]}, {"groups": []}, "the optimizer groups of rank 1 are none, expected those of rank 0, a"),
        (
            {"tied": ["e (f [2, 3])"]},
            {"tied": ["e (f [2, 4])"]},
            "the tied parameters of",
        ),
        ({"tied": ["e (f [2, 3])"]}, {"tied": []}, ""),
        ({}, {}, ""),
    ],
)
def test_number_order_names_and_dtypes_are_compared(own: Any, others: Any, text: str) -> None:
    layout = mock.Mock()
    layout.gather_objects = lambda facts: [{"groups": [], "tied": [], **one} for one in (facts, others)]
    if not text:
        require_alike(own, layout)
        return
    with pytest.raises(LaunchError) as caught:
        require_alike(own, layout)
    assert text in str(caught.value)
