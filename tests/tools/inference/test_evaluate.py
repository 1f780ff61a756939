"""``evaluate``: the run's own validation loss, to the bit where its layout cuts no product, and bits per byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.corpus import open_corpus
from pretrain.data.indexed import IndexedDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizers import load_tokenizer
from pretrain.errors import DataError
from tests.tools.checkpoints.models import newest
from tests.tools.inference.conftest import Trained
from tests.tools.inference.runs import LAYOUTS, quietly
from tests.tools.texts import make_documents, write_jsonl
from tools.evaluate import main as evaluate
from tools.export_hf import main as export
from tools.inference import text
from tools.inference.model import load
from tools.inference.text import predicted_bytes
from tools.preprocess import main as preprocess


def report(source: Path, *arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(quietly(evaluate, source, *arguments, "--json"))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_fp32_is_the_runs_own_loss_at_any_layout(trained: Trained, name: str) -> None:
    found = report(trained.folder / f"fp32-{name}")
    told = trained.outcomes[f"fp32-{name}"]["validation"][-1]
    assert found["loss"] == pytest.approx(told, abs=1e-6)
    assert found["run"] == {"validation_loss": told, "updated_after": False}
    assert (found["samples"], found["tokens"], found["step"]) == (11, 11 * 32, 6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


@pytest.mark.parametrize("key", ["bf16-zero2", "bf16-zero3", "bf16-pipeline", "fp32-zero2", "fp32-zero3"])
def test_it_is_bit_equal_where_no_product_is_cut(
    trained: Trained, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(trained.folder / key)["loss"] == trained.outcomes[key]["validation"][-1]
    assert evaluate([str(trained.folder / key)]) == 0
    assert "the same to the bit" in capsys.readouterr().out
    earlier = trained.folder / key / "checkpoints" / "step-00000003"
    assert report(earlier)["loss"] == trained.outcomes[key]["validation"][0]


def test_documents_stay_apart_where_they_did_in_the_run(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.folder / "bf16-zero3"
    found = report(run)
    whole = load(run)
    assert whole.run is not None and whole.run.data.reset_attention
    monkeypatch.setattr("tools.evaluate.load", lambda *_, **__: whole)  # as generation reads it
    assert report(run)["loss"] != found["loss"]


def test_the_backends_that_the_run_measured_multiply_again(trained: Trained) -> None:
    manifest = json.loads((newest(trained.folder / "bf16-tiles") / "manifest.json").read_text())
    found = report(trained.folder / "bf16-tiles")
    assert found["loss"] == trained.outcomes["bf16-tiles"]["validation"][-1]
    chosen = set(manifest.get("products", {}).get("chosen", {"": "dense"}).values())
    assert all(name in found["products"] for name in chosen)


def test_an_export_has_the_loss_of_its_run(trained: Trained, tmp_path: Path) -> None:
    quietly(export, trained.folder / "fp32-zero2", tmp_path / "out")
    own = report(trained.folder / "fp32-zero2")
    data = ["--data", trained.corpus, "--split", "validation"]
    assert report(trained.folder / "fp32-zero2", *data)["loss"] == own["loss"]
    other = report(tmp_path / "out", *data, "--samples", 4)
    assert other["run"] is None and other["tokens"] == other["samples"] * 128, "the whole context"
    assert other["loss"] == pytest.approx(own["loss"], abs=0.1)


def test_bits_per_byte_are_of_the_text_itself(trained: Trained, model: str) -> None:
    found = report(trained.folder / "fp32-zero2", "--samples", "all")
    corpus = open_corpus(f"{trained.corpus}_validation", 32, 0)
    assert found["samples"] == found["of_samples"] == corpus.num_samples
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * found["tokens"] / math.log(2) / found["bytes"])
    # All text of the split, but for its first token and what is left over behind the last whole sample.
    data, decode = IndexedDataset(f"{trained.corpus}_validation"), load_tokenizer(model).decode
    end = load_tokenizer(model).eos_id
    whole = predicted_bytes(data.tokens(0, found["tokens"] + 1).tolist(), decode, end)
    assert found["bytes"] == pytest.approx(whole, rel=0.005)


def test_pieces_of_text_are_counted_in_their_place(model: str) -> None:
    tokenizer = load_tokenizer(model)
    first, second = "the caf\u00e9 of", "a \u4f60\u597d"
    tokens = [*tokenizer.encode(first).tolist(), tokenizer.eos_id, *tokenizer.encode(second).tolist(), tokenizer.eos_id]
    head = len(tokenizer.decode(tokens[:1]).encode())
    expected = len(first.encode()) + len(second.encode()) - head
    assert predicted_bytes(tokens, tokenizer.decode, tokenizer.eos_id) == expected
    assert predicted_bytes([tokenizer.eos_id, *tokens], tokenizer.decode, tokenizer.eos_id) == expected + head


def test_without_a_tokenizer_the_manifest_tells_if_it_can(
    trained: Trained, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one of two splits it cannot: its counts are those of all that was read."""

    def none(*_: Any) -> None:
        raise DataError("no tokenizer was found")

    monkeypatch.setattr(text, "find_tokenizer", none)
    run = trained.folder / "fp32-zero2"
    found = report(run)
    assert found["bits_per_byte"] is None and found["notes"] == ["no bits per byte: no tokenizer was found"]
    prefix, lines = str(tmp_path / "whole"), write_jsonl(tmp_path / "text.jsonl", make_documents(60, seed=9))
    quietly(preprocess, "--input", lines, "--tokenizer", model, "--output", prefix, "--workers", 1)
    found, manifest = report(run, "--data", prefix), read_manifest(prefix)
    assert manifest is not None
    share = manifest.counts["text_bytes"] / manifest.tokens
    assert found["bytes"] == round(found["tokens"] * share) and found["bits_per_byte"] > 0


def test_the_runs_training_data_by_the_same_means(trained: Trained) -> None:
    train, own = report(trained.folder / "fp32-zero2", "--split", "train"), report(trained.folder / "fp32-zero2")
    assert train["data"][0]["path"].endswith("_train") and train["run"] is None
    assert train["loss"] != own["loss"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--tokenizer", "nowhere.model"], "tokenizer nowhere.model does not exist"),
        (["--device", "cuda"], "--device is cuda, and torch sees no GPU"),
    ],
)
def test_what_cannot_be_is_one_line(
    trained: Trained, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(trained.folder / "fp32-zero2"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and said in told.err


def test_a_number_of_samples_is_one(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate([str(trained.folder / "fp32-zero2"), "--samples", "none"])
    assert "expected a number of samples, 1 or more, or all" in capsys.readouterr().err
