"""Samples inside a run: they change nothing, every layout writes them, and all ranks take what one chose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import config_from_dict
from pretrain.errors import ConfigError
from tests.tools.inference.conftest import Trained
from tests.tools.inference.runs import BF16, LAYOUTS, PROMPTS, TOKENS, TWINS, job, quietly
from tools.generate import main as generate

KEYS = [*(f"fp32-{name}" for name in LAYOUTS), *(f"bf16-{name}" for name in BF16)]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("key", TWINS)
def test_training_is_bit_for_bit_the_same_without_them(trained: Trained, key: str) -> None:
    own, plain = trained.outcomes[key], trained.outcomes[f"{key}-plain"]
    for what in ("losses", "norms", "validation", "digests", "masks"):
        assert own[what] == plain[what], what
    assert len(own["validation"]) == 2 and not (trained.folder / f"{key}-plain" / "samples.jsonl").exists()


@pytest.mark.parametrize("key", KEYS)
def test_they_are_written_at_evaluations_and_told_in_a_line_each(trained: Trained, key: str) -> None:
    rows = samples(trained.folder / key)
    assert [(row["step"], row["prompt"]) for row in rows] == [(step, text) for step in (3, 6) for text in PROMPTS]
    assert all(row.keys() == {"step", "prompt", "text"} for row in rows) and any(row["text"] for row in rows)
    told = [line for line in trained.outcomes[key]["screen"].splitlines() if line.startswith("sample at step")]
    assert len(told) == len(rows)
    assert told[0].startswith('sample at step 3: "the sparse weight" -> "')


@pytest.mark.parametrize("name", LAYOUTS)
def test_they_are_what_the_checkpoint_writes(trained: Trained, name: str) -> None:
    """After step 6 no update followed: its checkpoint is the model that wrote."""
    report = json.loads(
        quietly(generate, trained.folder / f"fp32-{name}", *PROMPTS, "--max-new-tokens", TOKENS, "--json")
    )
    assert [text["text"] for text in report["texts"]] == [
        row["text"] for row in samples(trained.folder / f"fp32-{name}")[3:]
    ]


def test_an_interval_of_their_own_and_chance_that_all_ranks_share(trained: Trained) -> None:
    rows = samples(trained.folder / "drawn")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert len({row["text"] for row in rows}) == 3
    disagreeing = samples(trained.folder / "disagreeing")
    assert disagreeing == rows, "what the first rank chooses, all take, and none waits for ever"
    assert trained.outcomes["drawn"]["losses"] == trained.outcomes["fp32-zero2"]["losses"]


def changed(trained: Trained, tmp_path: Path, model: str, **changes: Any) -> dict[str, Any]:
    given = job(tmp_path, "run", trained.corpus, model, "fp32", {"zero_stage": 1})
    given["evaluation"] |= changes
    return given


def test_settings_that_cannot_be_are_one_line(trained: Trained, tmp_path: Path, model: str) -> None:
    given = changed(trained, tmp_path, model, prompts=["a"], prompts_tokens=32, prompts_interval=-1)
    given["data"]["tokenizer"] = None
    with pytest.raises(ConfigError) as caught:
        config_from_dict(given)
    assert caught.value.problems == [
        "evaluation.prompts_interval is -1, expected 0 or more",
        "evaluation.prompts is given without data.tokenizer, expected a tokenizer for these texts, or prompts []",
        "evaluation.prompts_tokens is 32, expected fewer than data.seq_length 32, in which a prompt has to fit too",
    ]


def test_a_prompt_that_is_too_long_ends_the_run_at_its_start(trained: Trained) -> None:
    said = trained.outcomes["too-long"]["error"]
    assert re.fullmatch(
        r"evaluation.prompts\[1\] has \d+ tokens, expected at most 23: data.seq_length 32 less prompts_tokens 9", said
    )
    assert not (trained.folder / "too-long" / "metrics.jsonl").exists()
