"""FLOP/s, MFU, epochs and memory: what the figures of a step mean, and that all ranks agree on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.callbacks.logging import _silence
from pretrain.config import RunConfig, config_from_dict
from pretrain.data.corpus import open_corpus
from pretrain.data.epochs import as_epochs, epochs, epochs_of_each, of_validation, too_many
from pretrain.plan.compute import active_flops
from pretrain.yardstick import Yardstick, peak_of
from tests.distributed import run_ranks
from tests.pretrain.runs import layout_of, settings, train, write_corpus

HIDDEN, INNER, LAYERS, HEADS, KEYS, VOCABULARY, LENGTH, BATCH = 24, 36, 2, 3, 1, 97, 16, 8


def tiny(density: float = 0.25, **changes: Any) -> RunConfig:
    return config_from_dict(settings("none", Path("none"), sparsity__density=density, **changes))


def by_hand(density: float) -> tuple[int, int]:
    """(of sparse layers, of the rest) for a step of the tiny model; grouped queries have a third of the width."""
    tokens = BATCH * LENGTH
    head = HIDDEN // HEADS
    weights = LAYERS * (HIDDEN * HIDDEN * 2 + 2 * HIDDEN * KEYS * head + 3 * HIDDEN * INNER)
    attention = LAYERS * 2 * LENGTH * HIDDEN  # scores and their use, over half of the sequence
    return round(6 * tokens * weights * density), 3 * tokens * (attention + 2 * HIDDEN * VOCABULARY)


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_active_flops_are_those_of_active_weights(density: float) -> None:
    sparse, other = by_hand(density)
    found = active_flops(tiny(density))
    assert found.other == other and found.sparse == pytest.approx(sparse, rel=0.01)


def test_a_layout_does_not_change_what_a_model_needs() -> None:
    given = settings("none", Path("none"), sparsity__density=0.25)
    given["model"] |= {"num_key_value_heads": 3, "vocab_size": 96}
    cut = {"tensor": 3, "pipeline": 2, "zero_stage": 1}
    one, many = (active_flops(config_from_dict(one)) for one in (given, {**given, "parallel": cut}))
    assert one.other == many.other and one.sparse == pytest.approx(many.sparse, rel=0.01)


def test_figures_are_per_device_and_need_a_peak() -> None:
    known = Yardstick(fixed=10**12, sparse=10**12, computed=5 * 10**12, devices=2, peak=8e12, source="a table")
    assert known.figures(0.5) == {"tflops": 2.0, "hardware_tflops": 5.0, "mfu": 0.5, "hfu": 1.25}
    assert known.figures(0.5, share=0.5)["tflops"] == 1.5, "half of the stored weights are closed"
    unknown = Yardstick(10**12, 10**12, 5 * 10**12, 2, None, "no peak is known of Abacus")
    assert set(unknown.figures(0.5)) == {"tflops", "hardware_tflops"}
    assert "MFU is left out (no peak is known of Abacus)" in unknown.describe()


@pytest.mark.parametrize(
    ("name", "precision", "flops", "why"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12, "bf16 peak of H100"),
        ("NVIDIA H100 80GB HBM3", "fp32", None, "is of bf16, and train.precision is fp32"),
        ("NVIDIA Abacus", "bf16", None, "no peak is known of NVIDIA Abacus"),
    ],
)
def test_a_gpu_s_peak_is_its_name_s(
    name: str, precision: str, flops: float | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_of(torch.device("cuda", 0), precision)
    assert found.flops == flops and why in found.source


def test_a_processor_s_peak_is_measured_without_drawing_numbers() -> None:
    before = torch.get_rng_state()
    found = peak_of(torch.device("cpu"), "fp32")
    assert found.flops is not None and 1e8 < found.flops < 1e14
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "long", tokens=16 * 100 + 1), write_corpus(folder / "short", tokens=16 * 10 + 1)


def test_epochs_are_of_each_corpus_and_of_all(corpora: tuple[str, str]) -> None:
    long, short = corpora
    alone = open_corpus(long, 16, seed=0)
    assert epochs(alone, 250) == 2.5 and epochs_of_each(alone, 250) == {long: 2.5}
    assert as_epochs(alone, 250) == "4,000 tokens = 2.5 epochs of 1,600 tokens"
    blend = open_corpus([{"path": long, "weight": 1.0}, {"path": short, "weight": 1.0}], 16, seed=0)
    assert epochs_of_each(blend, 200) == {long: 1.0, short: 10.0} and epochs(blend, 220) == 2.0
    stages = [{"until_tokens": 16 * 100, "blend": [{"path": long}]}, {"blend": [{"path": short}]}]
    assert epochs_of_each(open_corpus(stages, 16, seed=0), 120) == {long: 1.0, short: 2.0}


def test_more_than_four_epochs_are_worth_a_warning(corpora: tuple[str, str]) -> None:
    long, short = corpora
    alone = open_corpus(long, 16, seed=0)
    assert too_many(alone, steps=50, batch=8) == []
    (warning,) = too_many(alone, steps=51, batch=8)
    assert f"51 steps are 4.08 epochs of {long} (1,600 tokens)" in warning and "(50 are 4 epochs)" in warning
    blend = open_corpus([{"path": long}, {"path": short}], 16, seed=0)
    (warning,) = too_many(blend, steps=11, batch=8)
    assert f"epochs of {short}" in warning and "give it more text" in warning


def test_validation_text_that_is_too_short_or_trained_on_is_worth_a_warning(corpora: tuple[str, str]) -> None:
    long, short = (open_corpus(prefix, 16, seed=0) for prefix in corpora)
    assert of_validation(long, None, 1000) == of_validation(long, short, short.num_samples) == []
    (warning,) = of_validation(long, short, 25)
    assert f"samples is 25, and {corpora[1]} has 10, which are counted 2.5 times; evaluation.samples=10 is" in warning
    both = open_corpus([{"path": corpora[0]}, {"path": corpora[1]}], 16, seed=0)
    (trained,) = of_validation(both, short, 10)
    assert trained.startswith(f"warning: {corpora[1]} is trained on and validated on")
    _, _, warning = of_validation(both, both, 40)
    assert warning.endswith(f"evaluation.samples is 40, and {corpora[1]} has 10, which are counted 2 times")


def test_a_silence_is_announced() -> None:
    class Trainer:
        step, last_step = 1, 10_000
        config = tiny(logging__interval=10)

    assert _silence(Trainer(), 3.0) == ""  # type: ignore[arg-type]
    assert _silence(Trainer(), 9.5) == (  # type: ignore[arg-type]
        "the next line comes after step 10, in about 1m26s (logging.interval 10)"
    )


def of_each_rank(job: dict[str, Any]) -> dict[str, Any]:
    """The largest of what ranks give, and a short run. Runs in the ranks."""
    import os

    rank = int(os.environ["RANK"])
    largest = layout_of(config_from_dict(job)).maxima(rank, 10 - rank, 1 << 40)
    return {**train(job), "largest": largest}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("speed")
    corpus = write_corpus(folder / "corpus", tokens=400)
    given = settings(corpus, folder / "run", train__steps=15, evaluation__interval=0, logging__interval=10)
    return folder / "run", run_ranks(of_each_rank, 2, given)


def test_the_largest_of_all_ranks_is_known_to_all(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["largest"] for found in ran[1]] == [(1, 10, 1 << 40)] * 2


def test_every_record_has_the_figures(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = ran
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    needed = sum(by_hand(0.29))
    for record in records:
        assert record["tflops"] * 1e12 * record["step_seconds"] * 2 == pytest.approx(needed, rel=0.02)
        assert record["hfu"] > record["mfu"] > 0, "dense products multiply more than the active weights"
        assert record["memory_peak_fullest"] >= record["memory_peak"] > 1 << 20
        assert record["epochs"] == pytest.approx(record["step"] * 8 / 24)


def test_the_screen_tells_what_a_reader_waits_for(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    _, ranks = ran
    lines = ranks[0]["screen"].splitlines()
    assert ranks[1]["screen"] == ""
    assert max(len(line) for line in lines if line.startswith(("SMET", "step ", "  "))) <= 200
    starts = [line.split()[1] for line in lines if line.startswith("step ")]
    assert starts == ["1/15", "4/15", "8/15", "10/15", "12/15", "15/15"]
    first = next(line for line in lines if line.startswith("step 1/15"))
    for part in (" s/step  ", " tokens/s  ", "  left ", "  epoch 0.33  ", "  MFU ", "B"):
        assert part in first, part
    (warning,) = [line for line in lines if line.startswith("warning: the run's 15 steps are 5 epochs of ")]
    assert "(12 are 4 epochs)" in warning
    named = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert {"training", "numbers", "compute", "step", "run", "speed", "log"} <= named.keys()
    assert "8 steps" not in named["run"] and "15 steps = 1,920 tokens = 5 epochs of 384 tokens" in named["run"]
    assert "FLOP per step of active weights" in named["speed"] and "measured)" in named["speed"]


def test_what_deepspeed_says_is_in_the_log(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = ran
    log = (folder / "logs" / "engine-rank0.log").read_text().splitlines()
    assert any("[INFO]" in line for line in log)
    (line,) = [line for line in ranks[0]["screen"].splitlines() if line.startswith("  log")]
    assert f"of DeepSpeed in {folder}/logs/engine-rank0.log" in line and 0 < int(line.split()[1]) <= len(log)
