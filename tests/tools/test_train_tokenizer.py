"""Training a tokenizer: deterministic, padded, with byte fallback and an honest card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pretrain.data.tokenizers import load_tokenizer
from pretrain.errors import DataError
from tests.tools.texts import make_documents, write_jsonl
from tools.corpus.sample import Sample, sentences
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
        (["--vocab-size", "100000"], "no vocabulary of 100096 (100000 up to a multiple of 128) can be trained"),
        (["--vocab-size", "100"], "no vocabulary of 128 (100 up to a multiple of 128) can be trained"),
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


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, source: list[str], capsys) -> None:
    (tmp_path / "big.jsonl").write_text(json.dumps({"text": "x" * 40_000}) + "\nbroken\n" + json.dumps({"text": " "}))
    args = [*source, str(tmp_path / "big.jsonl"), "--vocab-size", "384", "--max-document-bytes", "20k"]
    assert main([*args, "--output", str(tmp_path / "tok")]) == 0
    card = json.loads((tmp_path / "tok.card.json").read_text())
    assert (card["records"], card["documents_seen"], card["empty"], card["rejected"]) == (303, 300, 1, 2)
    assert (card["rejected: too long"], card["rejected: broken JSON"], card["read_to_the_end"]) == (1, 1, True)
    rejects = [json.loads(line) for line in (tmp_path / "tok.rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["position"]) for reject in rejects] == [
        (str(tmp_path / "big.jsonl"), 0), (str(tmp_path / "big.jsonl"), 40_013),
    ]  # fmt: skip
    assert f"left out 2 records; they are in {tmp_path}/tok.rejects.jsonl" in capsys.readouterr().err


def test_sentencepiece_leaves_no_line_out() -> None:
    """It would drop a whole line for one NUL or one of its sign for unknown bytes."""
    assert list(sentences(["before\0after \u2585 end"])) == ["before", "after ", " end"]


def test_a_card_of_the_earlier_name_is_told_from_a_tokenizer(tmp_path: Path, source: list[str], capsys) -> None:
    """transformers takes ``tokenizer.json`` for its own, so the card has another name now."""
    args = [*source, "--vocab-size", "384", "--output", str(tmp_path / "tokenizer")]
    assert main(args) == 0
    assert not (tmp_path / "tokenizer.json").exists()
    (tmp_path / "tokenizer.card.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=f"is the card of a SentencePiece model, no tokenizer; give {tmp_path}"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert main([*args, "--overwrite"]) == 0
    assert not (tmp_path / "tokenizer.json").exists() and (tmp_path / "tokenizer.card.json").exists()


@pytest.mark.parametrize("tokens", [["</s>"], ["a b"], [""], ["<|x|>", "<|x|>"]])
def test_special_tokens_that_cannot_be_are_one_line(
    tmp_path: Path, source: list[str], capsys, tokens: list[str]
) -> None:
    args = [*source, "--vocab-size", "384", "--output", str(tmp_path / "tok"), "--special-tokens", *tokens]
    assert main(args) == 2
    assert f"--special-tokens {'has' if all(tokens) else 'is empty'}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_at_once(tmp_path: Path, source, capsys, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tools.train_tokenizer.draw_samples", lambda *args: pytest.fail("it was read"))
    assert main([*source, "--vocab-size", "384", "--output", str(tmp_path / "file" / "tok")]) == 2
    assert "error: " in capsys.readouterr().err
