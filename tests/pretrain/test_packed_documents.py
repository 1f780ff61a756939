"""Runs with ``data.reset_attention``: every layout trains the same model, and another one than without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.writer import IndexedWriter
from pretrain.errors import UserError
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train, train_all

EOS = 5
SHAPE = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
SPARSITY = {"density": 0.29, "update_interval": 3, "warmup_steps": 3, "stop_fraction": 1.0, "topology_ranges": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one": (1, {"zero_stage": 1}, {}),
    "recomputed": (1, {"zero_stage": 1}, {"train__activation_checkpointing": True}),
    "zero3": (2, {"zero_stage": 3}, {}),
    "tp2-sequence": (2, {"tensor": 2, "zero_stage": 1, "sequence": True}, {}),
    "pp2": (2, {"pipeline": 2, "zero_stage": 1}, {}),
    "pp2-recomputed": (2, {"pipeline": 2, "zero_stage": 1}, {"train__activation_checkpointing": True}),
    "pp2-tied": (2, {"pipeline": 2, "zero_stage": 1}, {"model": {**SHAPE, "tie_word_embeddings": True}}),
    "one-tied": (1, {"zero_stage": 1}, {"model": {**SHAPE, "tie_word_embeddings": True}}),
    "without": (1, {"zero_stage": 1}, {"data__reset_attention": False}),
}
"""Name to ranks, parallel section, other changes."""


def write_documents(prefix: Path, tokens: int = 8000) -> str:
    """Short documents, about two to a sample, in which a token depends on the one before."""
    rng = np.random.default_rng(0)
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        while writer.num_tokens < tokens:
            document = np.zeros(int(rng.integers(3, 15)), np.uint16)
            for place in range(1, len(document)):
                document[place] = (document[place - 1] * 5 + rng.integers(0, 7)) % 90 + 6
            document[-1] = EOS
            writer.add(document)
    return str(prefix)


def job(corpus: str, folder: Path, name: str) -> dict[str, Any]:
    _, parallel, changes = LAYOUTS[name]
    dotted = {key: value for key, value in changes.items() if "__" in key}
    common = {"train__steps": 8, "train__micro_batch_size": 2, "data__reset_attention": True, "data__eos_id": EOS}
    given = settings(corpus, folder / name, **{**common, **dotted})
    sections = {key: value for key, value in changes.items() if "__" not in key}
    return {**given, "model": SHAPE, "sparsity": SPARSITY, **sections, "parallel": parallel}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("packed")
    corpus = write_documents(folder / "corpus")
    found: dict[str, dict[str, Any]] = {}
    for ranks in (1, 2):
        names = [name for name, layout in LAYOUTS.items() if layout[0] == ranks]
        results = run_ranks(train_all, ranks, [job(corpus, folder, name) for name in names], timeout=300)
        found |= dict(zip(names, results[0], strict=True))
    return found


@pytest.mark.parametrize(
    ("layout", "same_as"),
    [(name, "one-tied" if name.endswith("tied") else "one") for name in LAYOUTS if name not in ("one", "without")],
)
def test_every_layout_keeps_documents_apart_alike(outcomes: dict[str, Any], layout: str, same_as: str) -> None:
    ours, reference = outcomes[layout], outcomes[same_as]
    assert ours["losses"] == pytest.approx(reference["losses"], rel=2e-5)
    assert ours["validation"] == pytest.approx(reference["validation"], rel=2e-5)
    assert ours["norms"] == pytest.approx(reference["norms"], rel=2e-4)
    if LAYOUTS[layout][1].get("tensor", 1) == LAYOUTS[layout][1].get("pipeline", 1) == 1:
        assert ours["digests"] == reference["digests"]


def test_the_option_changes_what_is_computed(outcomes: dict[str, Any]) -> None:
    with_option, without = outcomes["one"]["losses"], outcomes["without"]["losses"]
    assert abs(with_option[0] - without[0]) > 1e-5
    assert with_option[-1] != without[-1]


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        train(given)
    return str(caught.value)


def test_a_corpus_that_does_not_name_its_end_of_document_token_is_refused(tmp_path: Path) -> None:
    corpus = write_documents(tmp_path / "corpus", tokens=500)
    given = {**job(corpus, tmp_path, "one")}
    given["data"].pop("eos_id")
    (message,) = run_ranks(refused, 1, given)
    assert "data.reset_attention needs the end-of-document token" in message and "set data.eos_id" in message
    assert not (tmp_path / "one").exists()
