"""Spikes are skipped and rolled back by all ranks together, whichever rank has the trouble."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.callbacks.base import Callback
from pretrain.callbacks.guard import GuardCallback
from pretrain.config import config_from_dict
from pretrain.errors import DivergenceError
from pretrain.run import prepared
from pretrain.trainer import Trainer
from tests.distributed import run_ranks
from tests.pretrain.runs import layout_of, settings, write_corpus


class Planted(Callback):
    """Multiplies this rank's gradients, as broken hardware or data would."""

    name = "planted"

    def __init__(self, factors: dict[int, float], by: str):
        self.factors, self.by = factors, by

    def on_start(self, trainer: Trainer) -> None:
        parameter = next(p for p in trainer.engine.model.parameters() if p.requires_grad)

        def multiply(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * self.factors.get(getattr(trainer, self.by), 1.0)

        parameter.register_hook(multiply)


class Disagreeing(Callback):
    """One rank that sees a spike at ``step``, where nobody else does."""

    name = "disagreeing"

    def __init__(self, guard: GuardCallback, step: int):
        self.guard, self.step, self.original = guard, step, guard._spike

    def before_step(self, trainer: Trainer) -> None:
        now = trainer.step + 1 == self.step
        self.guard._spike = (lambda loss, norm: "imagined") if now else self.original  # type: ignore[method-assign]


@contextlib.contextmanager
def announcements() -> Iterator[list[str]]:
    """What DeepSpeed warns of on this rank meanwhile."""
    logger, texts = logging.getLogger("DeepSpeed"), []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def train(case: dict[str, Any]) -> dict[str, Any]:
    """One run with trouble planted on ``case["rank"]``; what it did, as this rank knows it."""
    config = config_from_dict(case["job"])
    layout = layout_of(config)
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), announcements() as announced, prepared(config, layout) as trainer:
        (guard,) = (callback for callback in trainer.callbacks if isinstance(callback, GuardCallback))
        if layout.rank == case["rank"]:
            trainer.callbacks.append(Planted(case["factors"], case.get("by", "step")))
        if layout.rank == 1 and "disagree" in case:
            trainer.callbacks.append(Disagreeing(guard, case["disagree"]))
        error = ""
        try:
            trainer.fit()
        except DivergenceError as caught:
            error = str(caught)
    return {
        "error": error,
        "step": trainer.step,
        "consumed": trainer.consumed_samples,
        "updates": trainer.store.optimizer.steps_done,
        "skipped": guard.skipped,
        "passed_over": trainer.passed_over,
        "masks": trainer.topology.mask_digest(),
        "screen": screen.getvalue(),
        "announced": [text for text in announced if "kipping step" in text],
    }


def train_all(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [train(case) for case in cases]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def charted(folder: Path) -> list[int]:
    """The steps of the losses that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in accumulator.Scalars("train/loss")]


LAYOUTS = {
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "tensor": {"tensor": 2, "zero_stage": 1},
    "pipeline": {"pipeline": 2, "zero_stage": 1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("guard") / "corpus")


def job(corpus: str, folder: Path, **changes: Any) -> dict[str, Any]:
    given = settings(corpus, folder, evaluation__interval=0, train__steps=24, optimizer__lr=1e-3, **changes)
    given["model"].update(vocab_size=98, hidden_size=16, intermediate_size=24, num_attention_heads=2)
    given["model"]["num_key_value_heads"] = 2
    return given


def test_trouble_of_one_rank_is_skipped_by_all(corpus: str, tmp_path: Path) -> None:
    cases = []
    for name, parallel in LAYOUTS.items():
        # The planted parameter is the embedding, which is in the first stage of a pipeline.
        trouble = {"rank": 0 if name == "pipeline" else 1, "factors": {2: float("nan"), 19: 1e5}, "disagree": 5}
        cases.append({"job": {**job(corpus, tmp_path / name), "parallel": parallel}, **trouble})
    for name, *ranks in zip(LAYOUTS, *run_ranks(train_all, 2, cases, timeout=300), strict=True):
        for found in ranks:
            assert (found["error"], found["step"], found["skipped"], found["updates"]) == ("", 24, 3, 21), name
        told = events(tmp_path / name)
        assert [(event["kind"], event["step"]) for event in told] == [("skip", 3), ("skip", 5), ("skip", 20)], name
        assert [event["samples"] for event in told] == [[16, 24], [32, 40], [152, 160]], name
        assert told[0]["why"] == "gradients not finite", name
        assert told[1]["why"] == "spike seen by another rank", name
        assert told[2]["why"].startswith("gradient norm") and "deviations above the last 17 steps" in told[2]["why"]
        assert "step 20: gradient norm" in ranks[0]["screen"]
        assert "step skipped (3 skipped so far)" in ranks[0]["screen"]
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [metrics[step - 1]["skipped"] for step in (3, 5, 20)] == [True] * 3
        assert metrics[2]["grad_norm"] is None and metrics[4]["grad_norm"] < 1e3 < metrics[19]["grad_norm"]
        # Step 3 had gradients that are not finite; steps 5 and 20 had not, and nobody may say so.
        assert len(ranks[0]["announced"]) == 1 and "non-finite" in ranks[0]["announced"][0], (name, ranks)
        assert ranks[1]["announced"] == [], name


def test_after_going_back_steps_are_saved_again(corpus: str, tmp_path: Path) -> None:
    """The checkpoint of a step that was abandoned is gone, so the step's second time counts."""
    given = {**job(corpus, tmp_path / "run", checkpoint__interval=4), "guard": {"max_skips": 3}}
    first = {"job": {**given, "train": {**given["train"], "stop_at": 18}}, "rank": 1, "factors": {}}
    bad = {8 * step: 1e5 for step in (19, 20, 21)}
    run_ranks(train_all, 2, [first, {"job": given, "rank": 1, "factors": bad, "by": "consumed_samples"}])
    assert events(tmp_path / "run")[-1]["to"] == 18, "back to where the first part stopped, between two intervals"
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == ["step-00000018", "step-00000020", "step-00000024"]


def test_a_run_that_keeps_spiking_goes_back_and_passes_over(corpus: str, tmp_path: Path) -> None:
    bad = {8 * step: 1e5 for step in (18, 19, 20)}  # first samples of steps 19 to 21
    guard = {"max_skips": 3, "max_rollbacks": 1}
    told = {"checkpoint__interval": 4, "logging__writers": ["tensorboard"]}
    back = {**job(corpus, tmp_path / "back", **told), "guard": guard}
    stop = {**job(corpus, tmp_path / "stop", checkpoint__interval=4), "guard": {**guard, "max_rollbacks": 0}}
    none = {**job(corpus, tmp_path / "none"), "guard": guard}
    cases = [{"job": given, "rank": 1, "factors": bad, "by": "consumed_samples"} for given in (back, stop, none)]
    first, second = run_ranks(train_all, 2, cases, timeout=300)
    for found in (first[0], second[0]):
        assert (found["error"], found["step"], found["consumed"]) == ("", 24, 8 * 27)
        assert found["passed_over"] == [(8 * step, 8 * step + 8) for step in (18, 19, 20)]
    assert first[0]["masks"] == second[0]["masks"]
    kinds = [(event["kind"], event["step"]) for event in events(tmp_path / "back")]
    assert kinds == [("skip", 19), ("skip", 20), ("skip", 21), ("rollback", 21)]
    assert events(tmp_path / "back")[-1]["to"] == 16
    steps = [json.loads(line)["step"] for line in (tmp_path / "back" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))
    assert charted(tmp_path / "back") == steps, "each step once, as in metrics.jsonl"
    assert "back to step-00000016, passing over the samples of those steps" in first[0]["screen"]
    for i, text in ((1, "guard.max_rollbacks 0 are used up"), (2, "there is no checkpoint from before")):
        assert text in first[i]["error"] and first[i]["error"] == second[i]["error"]
