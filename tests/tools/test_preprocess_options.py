"""Templates, filters, standard input, Hugging Face tokenizers, and a first look at the columns."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from pretrain.data.manifest import read_manifest
from tests.tools.test_preprocess import decoded
from tests.tools.texts import DOCUMENTS, ROOT, write_jsonl
from tools.corpus.filters import letter_fraction, repeated_line_fraction
from tools.preprocess import main

RECORDS = [{"title": "One", "body": "first"}, {"title": "Two", "body": "second"}, {"body": "untitled"}]


def records(folder: Path) -> str:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return str(path)


@pytest.mark.parametrize("parquet", [False, True])
def test_template_puts_columns_together(tmp_path: Path, model: str, parquet: bool) -> None:
    source = records(tmp_path)
    if parquet:
        source = str(tmp_path / "in.parquet")
        pq.write_table(pa.Table.from_pylist(RECORDS), source)
    args = ["--input", source, "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, "--template", r"{title}:\n{body}"]) == 0
    assert decoded(tmp_path / "c", model) == ["One:\nfirst", "Two:\nsecond"]
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None and manifest.counts["rejected: missing column"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text-column", "boddy"], "has no column 'boddy' (did you mean 'body'?); it has body, title"),
        (["--template", "{name}"], "has no column 'name'"),
        (["--template", "plain"], "names no plain columns"),
        (["--template", "{title!r}"], "names no plain columns"),
        (["--template", "{title.x}"], "names no plain columns"),
        (["--template", "{title"], "is broken"),
        (["--text-column", "body", "--min-letter-fraction", "3"], "expected a fraction in [0, 1]"),
        (["--text-column", "body", "--shard", "0/2", "--deduplicate"], "corpus merge instead"),
    ],
)
def test_mistakes_are_told_before_any_work(tmp_path: Path, model: str, capsys, options: list[str], said: str) -> None:
    args = ["--input", records(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize("shard", ["2/2", "x", "1", "-1/2"])
def test_a_shard_out_of_range_is_refused(tmp_path: Path, model: str, shard: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--input", records(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), f"--shard={shard}"])
    assert error.value.code == 2


def test_filters_leave_documents_out_and_count_them(tmp_path: Path, model: str) -> None:
    good = "a quite ordinary sentence of letters"
    texts = [good, "short", "x" * 500, "12345 67890 !!! ??? 12345 67890", "same line\nsame line\nsame line\nother line"]
    write_jsonl(tmp_path / "in.jsonl", texts)
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", model, "--output", str(tmp_path / "c")]
    args += ["--min-chars", "10", "--max-chars", "100", "--min-letter-fraction", "0.5"]
    assert main([*args, "--max-repeated-line-fraction", "0.3", "--workers", "1"]) == 0
    assert decoded(tmp_path / "c", model) == [good]
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None
    reasons = ("min_chars", "max_chars", "min_letter_fraction", "max_repeated_line_fraction")
    assert [manifest.counts[f"filtered: {reason}"] for reason in reasons] == [1, 1, 1, 1]


def test_fractions_know_no_language() -> None:
    assert letter_fraction("\u4f60\u597d \u043c\u0438\u0440 ab") == 1.0
    assert letter_fraction("ab 12") == 0.5
    assert letter_fraction("  ") == 0.0
    assert repeated_line_fraction("a\n\na\nb\n a ") == 0.5
    assert repeated_line_fraction("") == 0.0


def test_standard_input(tmp_path: Path, model: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS)
    command = [sys.executable, "-m", "tools.preprocess", "--input", "-", "--tokenizer", model, "--workers", "2"]
    with source.open("rb") as file:
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "c")],
            stdin=file,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert decoded(tmp_path / "c", model) == DOCUMENTS


def test_hugging_face_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    source = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS)
    args = ["--input", str(source), "--tokenizer", path, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    assert decoded(tmp_path / "c", path) == DOCUMENTS
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None and (manifest.vocab_size, manifest.eos_id) == (tokenizer.get_vocab_size(), 0)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    vocabulary = {"</s>": 0, "<unk>": 1, **{f"word{number}": number for number in range(2, 70_000)}}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "in.jsonl", ["word69999 word2"])
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert main([*args, "--output", str(tmp_path / "c"), "--workers", "1"]) == 0
    from pretrain.data.indexed import IndexedDataset

    data = IndexedDataset(tmp_path / "c")
    assert data.dtype == "int32" and data.document(0).tolist() == [69_999, 2, 0]


def test_folders_take_known_names_and_patterns(tmp_path: Path, model: str, capsys) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.md", "c.py", "sub/d.py", "_SUCCESS", "e.bin"):
        (folder / name).write_text(f"text of {name}")
    args = [
        "--tokenizer",
        model,
        "--workers",
        "1",
        "--overwrite",
        "--output",
        str(tmp_path / "c"),
        "--input",
        str(folder),
    ]
    for options, expected in [
        ([], ["a.txt", "sub/b.md"]),
        (["--include", "*.py"], ["c.py", "sub/d.py"]),
        (["--include", "*.py", "*.txt", "--exclude", "*/sub/*"], ["a.txt", "c.py"]),
    ]:
        assert main([*args, *options]) == 0
        assert decoded(tmp_path / "c", model) == [f"text of {name}" for name in expected]
    assert main([*args, "--include", "*.py", "--exclude", "*.py"]) == 2
    assert "2 left out by --exclude" in capsys.readouterr().err


def test_another_stream_after_an_interruption_is_noticed(tmp_path: Path, model: str, monkeypatch, capsys) -> None:
    """Standard input has no name or date to tell it by: what was read is compared instead."""
    monkeypatch.setattr("tools.corpus.work.SEGMENT_BYTES", 2000)
    good = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS).read_bytes()
    args = ["--input", "-", "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]

    def give(content: bytes, *options: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return main([*args, *options])

    assert give(good + b"broken\n", "--on-error", "stop") == 2
    assert len(list((tmp_path / "c.work").glob("part-*"))) > 3
    capsys.readouterr()
    assert give(good.replace(b"sparse", b"dense!", 1)) == 2
    assert "does not give what it gave before the run was interrupted" in capsys.readouterr().err
    assert give(good + b"broken\n") == 0
    assert decoded(tmp_path / "c", model) == DOCUMENTS
    # Nor can it be known whether this is the same input once more.
    assert give(good) == 2
    assert "exists and was made from other inputs" in capsys.readouterr().err


def test_a_newer_input_of_the_same_size_is_not_taken_for_the_old_one(tmp_path: Path, model: str, capsys) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS)
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    source.write_bytes(source.read_bytes().replace(b"sparse", b"dense!", 1))
    later = (tmp_path / "c.manifest.json").stat().st_mtime + 1
    os.utime(source, (later, later))
    assert main(args) == 2
    assert "exists and was made from other inputs" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path: Path, model: str, monkeypatch, capsys) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS)
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "c.bin.writing")

    with monkeypatch.context() as patch:
        patch.setattr("pretrain.data.writer.os.fsync", full)
        assert main(args) == 2
    assert "error: No space left on device (c.bin.writing); mend that and start" in capsys.readouterr().err
    assert main(args) == 0
    assert decoded(tmp_path / "c", model) == DOCUMENTS
