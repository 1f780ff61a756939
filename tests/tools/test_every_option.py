"""Every option on every kind of input: it changes the outcome, or it is refused in one line. None is ignored."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.numbers import byte_size
from tests.tools.texts import ROOT
from tools import preprocess, train_tokenizer

TEXTS = ["an ordinary text", "an ordinary text", "long " * 8, "ab", "12345 67890 !!!", "line\nline\nline\nend", None]
RECORDS = [{"text": text, "other": f"other {number}"} for number, text in enumerate(TEXTS)]
Given = tuple[list[str], bytes]


def _lines() -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def _texts(folder: Path) -> list[Path]:
    """The last one is no UTF-8."""
    paths = [folder / f"{number}.txt" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_bytes(b"\xff\xfa" if text is None else text.encode())
    return paths


def jsonl(folder: Path) -> Given:
    (folder / "in.jsonl").write_bytes(_lines())
    return ["--input", str(folder / "in.jsonl")], b""


def compressed(folder: Path) -> Given:
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(_lines()))
    return ["--input", str(folder / "in.jsonl.gz")], b""


def parquet(folder: Path) -> Given:
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "in.parquet")
    return ["--input", str(folder / "in.parquet")], b""


def text_files(folder: Path) -> Given:
    return ["--input", *map(str, _texts(folder))], b""


def mixed_folder(folder: Path) -> Given:
    jsonl(folder)
    _texts(folder)
    return ["--input", str(folder)], b""


def pattern(folder: Path) -> Given:
    jsonl(folder)
    return ["--input", f"{folder}/**/*.jsonl"], b""


def standard_input(folder: Path) -> Given:
    return ["--input", "-"], _lines()


def saved_split(folder: Path) -> Given:
    import datasets

    datasets.Dataset.from_list(RECORDS, split="train").save_to_disk(folder / "set")
    return ["--dataset", str(folder / "set")], b""


def saved_splits(folder: Path) -> Given:
    import datasets

    parts = {"train": RECORDS, "validation": [{"text": "of validation", "other": "x"}]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(
        folder / "set"
    )
    return ["--dataset", str(folder / "set")], b""


def like_the_hub(folder: Path) -> Given:
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_bytes(_lines())
    (folder / "set" / "validation.jsonl").write_text('{"text": "of validation", "other": "x"}\n')
    return ["--dataset", str(folder / "set")], b""


KINDS = [
    jsonl, compressed, parquet, text_files, mixed_folder, pattern, standard_input, saved_split, saved_splits,
    like_the_hub,
]  # fmt: skip

OPTIONS: dict[str, list[str]] = {
    "--include": ["nothing*"],
    "--exclude": ["*"],
    "--format": ["text"],
    "--dataset-config": ["other"],
    "--split": ["validation"],
    "--text-column": ["other"],
    "--template": ["{other}"],
    "--text-mode": ["line"],
    "--eos-token": ["<s>"],
    "--validation-fraction": ["0.5"],
    "--shard": ["0/1"],
    "--on-error": ["stop"],
    "--max-document-bytes": ["25"],
    "--deduplicate": [],
    "--min-chars": ["5"],
    "--max-chars": ["20"],
    "--min-letter-fraction": ["0.9"],
    "--max-repeated-line-fraction": ["0.1"],
}
NAMING = {"--help", "--json", "--tokenizer", "--output", "--workers", "--overwrite", "--input", "--dataset"}
"""What to read and where to write, how fast and how loud; tested elsewhere."""


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {action.option_strings[-1] for action in parser._actions}


def test_the_tables_know_every_option() -> None:
    assert options_of(preprocess.build_parser()) == OPTIONS.keys() | NAMING
    training = options_of(train_tokenizer.build_parser()) - NAMING
    assert training == {name for name in OPTIONS if name in training} | TRAINING.keys()


def outcome(
    folder: Path, main: Callable[[Sequence[str]], int], given: Given, options: list[str], capsys, monkeypatch
) -> dict[str, Any]:
    """What the outputs hold, or the error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given[1])))
    folder.mkdir()
    code = main([*given[0], *options, "--output", str(folder / "c")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code in (0, 2) and len(errors) == (code == 2), errors
    if code:
        return {"error": errors[0]}
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".manifest" not in path.name}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_an_effect_or_is_refused(tmp_path: Path, model: str, capsys, monkeypatch, kind) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "in").mkdir()
    given = kind(tmp_path / "in")
    common = ["--tokenizer", model, "--workers", "1"]
    base = outcome(tmp_path / "base", preprocess.main, given, common, capsys, monkeypatch)
    assert "error" not in base
    for option, value in OPTIONS.items():
        value = ["jsonl"] if option == "--format" and kind is text_files else value
        made = outcome(tmp_path / option, preprocess.main, given, [*common, option, *value], capsys, monkeypatch)
        assert made != base, option
        if "error" in made:
            assert option in made["error"] or f"{option.removeprefix('--dataset-')} {value[0]}" in made["error"]


TRAINING = {
    "--vocab-size": ["384"],
    "--pad-to-multiple": ["50"],
    "--model-type": ["unigram"],
    "--special-tokens": ["<|user|>"],
    "--sample-bytes": ["900"],
    "--read-bytes": ["900"],
    "--character-coverage": ["0.99"],
    "--seed": ["1"],
}


@pytest.mark.parametrize("kind", [jsonl, text_files, standard_input, saved_split])
def test_the_same_for_training_a_tokenizer(tmp_path: Path, capsys, monkeypatch, kind) -> None:
    (tmp_path / "in").mkdir()
    given = kind(tmp_path / "in")
    common = ["--vocab-size", "290", "--pad-to-multiple", "1"]
    base = outcome(tmp_path / "base", train_tokenizer.main, given, common, capsys, monkeypatch)
    assert "error" not in base
    for option, value in {**OPTIONS, **TRAINING}.items():
        if option not in options_of(train_tokenizer.build_parser()):
            continue
        value = ["jsonl"] if option == "--format" and kind is text_files else value
        if option.endswith("-bytes") and option != "--max-document-bytes":
            value = ["20"]
        made = outcome(tmp_path / option, train_tokenizer.main, given, [*common, option, *value], capsys, monkeypatch)
        assert made != base, option


TEXT_OPTIONS = ("--eos-token", "--text-column", "--template", "--split", "--dataset-config", "--include", "--exclude")


@pytest.mark.parametrize("option", TEXT_OPTIONS)
def test_an_option_of_empty_text_is_no_default(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a shell variable that is not set."""
    given = ["--tokenizer", str(tmp_path / "t.model"), "--output", str(tmp_path / "out"), *jsonl(tmp_path)[0]]
    assert preprocess.main([*given, "--workers", "1", option, ""]) == 2
    assert capsys.readouterr().err == f"error: {option} is empty; give it a value, or leave it out\n"


def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocess, "preprocess", full)
    given = ["--tokenizer", "t.model", "--output", str(tmp_path / "out"), *jsonl(tmp_path)[0]]
    assert preprocess.main([*given, "--workers", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: No space left on device ({tmp_path}/out); mend that")


def test_no_option_of_any_program_takes_numbers_that_are_none() -> None:
    """``float`` takes nan and 1e999, which end in tracebacks, or in nothing left out where a limit was meant."""
    programs = [path for room in ("tools", "launch", "pretrain") for path in (ROOT / room).rglob("*.py")]
    assert programs and not [path for path in programs if "type=float" in path.read_text()]


@pytest.mark.parametrize("size", ["1e999", "inf", "nan", "0", "-1", "x", ""])
def test_a_size_that_is_none_is_one_line(size: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size in bytes"):
        byte_size(size)
