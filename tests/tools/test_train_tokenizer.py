"""Training a tokenizer: deterministic, padded, with byte fallback and an honest card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.tools.texts import make_documents, write_jsonl
from tools.corpus.sample import Sample, sentences
from tools.corpus.tokenizers import load_tokenizer
from tools.train_tokenizer import main


@pytest.fixture
def source(tmp_path: Path) -> list[str]:
    return ["--input", str(write_jsonl(tmp_path / "in.jsonl", make_documents(300)))]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, source: list[str], model_type: str) -> None:
    args = [*source, "--vocab-size", "330", "--pad-to-multiple", "8", "--model-type", model_type]
    for name in ("one", "two"):
        assert main([*args, "--output", str(tmp_path / name / "tok")]) == 0
    for suffix in ("model", "vocab", "card.json"):
        one, two = (tmp_path / name / f"tok.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_card_and_vocabulary(tmp_path: Path, source: list[str]) -> None:
    args = [*source, "--vocab-size", "330", "--pad-to-multiple", "64", "--special-tokens", "<|user|>", "<|end|>"]
    assert main([*args, "--output", str(tmp_path / "tok")]) == 0
    card = json.loads((tmp_path / "tok.card.json").read_text())
    assert card["vocab_size"] == 384
    assert card["sha256"] == hashlib.sha256((tmp_path / "tok.model").read_bytes()).hexdigest()
    assert card["documents_seen"] == 300
    assert card["bytes_held_out"] > 0 and 1 < card["bytes_per_token"] < 10
    assert len((tmp_path / "tok.vocab").read_text().splitlines()) == 384
    tokenizer = load_tokenizer(str(tmp_path / "tok.model"))
    assert tokenizer.vocab_size == 384
    # Ids of their own, which no text gives: a document that quotes them is not cut there.
    quoted = "<|user|><|end|>"
    assert not {3, 4} & set(tokenizer.encode(quoted).tolist()) and tokenizer.decode(tokenizer.encode(quoted)) == quoted
    assert [line.split("\t")[0] for line in (tmp_path / "tok.vocab").read_text().splitlines()[3:5]] == [
        "<|user|>",
        "<|end|>",
    ]


def test_text_comes_back_whole_even_if_its_characters_were_never_seen(tmp_path: Path, source: list[str]) -> None:
    assert main([*source, "--vocab-size", "384", "--output", str(tmp_path / "tok")]) == 0
    tokenizer = load_tokenizer(str(tmp_path / "tok.model"))
    for text in ("\u0f00\U0001f9ea  two  spaces\n\n\ttab", "a\x00b", "   leading"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_existing_tokenizer_stays(tmp_path: Path, source: list[str], capsys) -> None:
    args = [*source, "--vocab-size", "384", "--output", str(tmp_path / "tok")]
    assert main(args) == 0
    before = (tmp_path / "tok.model").read_bytes()
    assert main([*args, "--seed", "1"]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "tok.model").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--vocab-size", "100000"], "no vocabulary of 100096 can be trained"),
        (["--vocab-size", "100"], "no vocabulary of 128 can be trained"),
        (["--vocab-size", "0"], "--vocab-size is 0"),
        (["--text-column", "body"], "has no column 'body'; it has id, text"),
        (["--max-document-bytes", "1"], "gives no document with text in it"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, source: list[str], capsys, changes: list[str], said: str) -> None:
    assert main([*source, "--vocab-size", "384", "--output", str(tmp_path / "tok"), *changes]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert {path.name for path in tmp_path.glob("*tok.*")} <= {"tok.rejects.jsonl"}


def test_sample_is_bounded_uniform_and_reproducible() -> None:
    texts = [f"{number:08d}" * 10 for number in range(5000)]
    samples = [Sample(limit=40_000, seed=seed) for seed in (0, 0, 1)]
    for sample in samples:
        for text in texts:
            sample.add(text)
        assert 40_000 <= sample.size <= 40_080
        assert sample.documents() == sorted(sample.documents())
    first, same, other = (sample.documents() for sample in samples)
    assert first == same != other
    # 500 of 5000 documents: a quarter of them from each quarter of the input, give or take.
    quarter = sum(int(text[:8]) < 1250 for text in first)
    assert 85 < quarter < 165


def test_of_a_large_input_only_so_much_is_read(tmp_path: Path, source: list[str], monkeypatch) -> None:
    monkeypatch.setattr("tools.corpus.units.SMALLEST_UNIT", 1000)
    args = [*source, "--vocab-size", "384", "--pad-to-multiple", "1"]
    assert main([*args, "--read-bytes", "15000", "--output", str(tmp_path / "tok")]) == 0
    card = json.loads((tmp_path / "tok.card.json").read_text())
    assert 15_000 <= card["bytes_trained_on"] + card["bytes_held_out"] < 25_000
    assert card["documents_seen"] < 250


def test_long_lines_are_cut_to_what_sentencepiece_reads() -> None:
    line = "x\U0001f600" * 10_000
    cut = list(sentences([line + "\n\nshort"]))
    assert "".join(cut[:-1]) == line and cut[-1] == "short"
    assert max(len(piece.encode()) for piece in cut) <= 4096
