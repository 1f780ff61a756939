"""Preprocessing: every kind of input gives the same documents, whatever the number of workers."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data.indexed import IndexedDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizers import load_tokenizer
from tests.tools.texts import DOCUMENTS, ROOT, write_jsonl
from tools.preprocess import main


def decoded(prefix: Path, model: str) -> list[str]:
    """The documents of a corpus as text; checks that each ends with the end-of-document token."""
    data, tokenizer = IndexedDataset(prefix), load_tokenizer(model)
    documents = [data.document(number) for number in range(data.num_documents)]
    assert all(document[-1] == tokenizer.eos_id for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def plain(folder: Path) -> list[str]:
    write_jsonl(folder / "in.jsonl", DOCUMENTS)
    return ["--input", str(folder / "in.jsonl")]


def gzipped(folder: Path) -> list[str]:
    write_jsonl(folder / "in.jsonl", DOCUMENTS)
    (folder / "in.jsonl.gz").write_bytes(gzip.compress((folder / "in.jsonl").read_bytes()))
    return ["--input", str(folder / "in.jsonl.gz")]


def zstandard(folder: Path) -> list[str]:
    write_jsonl(folder / "in.jsonl", DOCUMENTS)
    with pa.output_stream(str(folder / "in.json.zst"), compression="zstd") as file:
        file.write((folder / "in.jsonl").read_bytes())
    return ["--input", str(folder / "in.json.zst")]


def parquet(folder: Path) -> list[str]:
    pq.write_table(pa.table({"text": DOCUMENTS}), folder / "in.parquet", row_group_size=7)
    return ["--input", str(folder / "in.parquet")]


def text_folder(folder: Path) -> list[str]:
    for number, text in enumerate(DOCUMENTS):
        path = folder / "in" / f"{number // 10}" / f"{number:04d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return ["--input", str(folder / "in")]


def text_glob(folder: Path) -> list[str]:
    text_folder(folder)
    return ["--input", str(folder / "in" / "**" / "*.txt")]


def dataset(folder: Path) -> list[str]:
    import datasets

    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(folder / "set")
    return ["--dataset", str(folder / "set")]


def dataset_folder(folder: Path) -> list[str]:
    (folder / "set").mkdir()
    write_jsonl(folder / "set" / "data.jsonl", DOCUMENTS)
    return ["--dataset", str(folder / "set")]


KINDS = [plain, gzipped, zstandard, parquet, text_folder, text_glob, dataset, dataset_folder]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_documents(tmp_path: Path, model: str, kind) -> None:
    prefix = tmp_path / "out" / "corpus"
    assert main([*kind(tmp_path), "--tokenizer", model, "--output", str(prefix), "--workers", "1"]) == 0
    assert decoded(prefix, model) == DOCUMENTS
    manifest = read_manifest(prefix)
    assert manifest is not None
    assert (manifest.documents, manifest.dtype, manifest.vocab_size) == (len(DOCUMENTS), "uint16", 512)
    assert not list(tmp_path.glob("out/*.work*")) and not list(tmp_path.glob("out/*.writing"))


def test_lines_of_a_text_file_as_documents(tmp_path: Path, model: str) -> None:
    (tmp_path / "in.txt").write_text("one\n\ntwo\r\n   \nthree", newline="")
    args = ["--input", str(tmp_path / "in.txt"), "--tokenizer", model, "--output", str(tmp_path / "c")]
    assert main([*args, "--text-mode", "line", "--workers", "1"]) == 0
    assert decoded(tmp_path / "c", model) == ["one", "two", "three"]


@pytest.mark.parametrize(("unit", "count"), [(1, 3), (17, 10), (100, 60), (1000, 60)])
def test_cutting_a_file_into_ranges_loses_no_line(
    tmp_path: Path, model: str, unit: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.corpus.units.SMALLEST_UNIT", unit)
    monkeypatch.setattr("tools.corpus.units.LARGEST_UNIT", unit)
    source = write_jsonl(tmp_path / "in.jsonl", DOCUMENTS[:count])
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    assert decoded(tmp_path / "c", model) == DOCUMENTS[:count]


def run(args: list[str]) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.preprocess", *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", [text_folder, gzipped])
def test_worker_processes_change_nothing(tmp_path: Path, model: str, kind) -> None:
    source = kind(tmp_path)
    outputs = []
    for workers in ("1", "3"):
        folder = tmp_path / workers
        args = [*source, "--tokenizer", model, "--output", str(folder / "c"), "--workers", workers, "--json"]
        done = run([*args, "--validation-fraction", "0.2"])
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["documents"] == len(DOCUMENTS) and summary["tokens"] > 0
        outputs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 6


def test_validation_split_is_disjoint_and_complete(tmp_path: Path, model: str) -> None:
    args = ["--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1", "--validation-fraction", "0.3"]
    assert main([*plain(tmp_path), *args]) == 0
    train, validation = (decoded(tmp_path / f"c_{name}", model) for name in ("train", "validation"))
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert 0.15 * len(DOCUMENTS) < len(validation) < 0.45 * len(DOCUMENTS)


def test_bad_records_are_counted_and_told(tmp_path: Path, model: str) -> None:
    lines = [
        b'{"text": "good one"}',
        b'{"text": "cut',
        b'{"text": "caf\xe9"}',
        b'{"body": "no text"}',
        b'{"text": 7}',
        b"[1, 2]",
        b'{"text": ""}',
        b"[" * 100_000,
        b'{"text": "\\ud800"}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        b'{"text": "good two"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", model, "--output", str(tmp_path / "c")]
    assert main([*args, "--workers", "1", "--max-document-bytes", "1000"]) == 0
    assert decoded(tmp_path / "c", model) == ["good one", "good two"]
    rejects = [json.loads(line) for line in (tmp_path / "c.rejects.jsonl").read_text().splitlines()]
    assert [reject["reason"] for reject in rejects] == [
        "broken JSON", "wrong encoding", "missing column", "not text", "broken JSON", "too long", "wrong encoding",
        "too long",
    ]  # fmt: skip
    starts = [sum(len(line) + 1 for line in lines[:number]) for number in (1, 2, 3, 4, 5, 7, 8, 9)]
    assert [reject["position"] for reject in rejects] == starts
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None
    assert manifest.counts["records"] == 11 and manifest.counts["empty"] == 1 and manifest.counts["rejected"] == 8


def test_on_error_stop_names_the_record_and_writes_nothing(tmp_path: Path, model: str, capsys) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "good"}\n{"text": "cut\n')
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", model, "--output", str(tmp_path / "c")]
    assert main([*args, "--workers", "1", "--on-error", "stop"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/in.jsonl, byte 17: broken JSON")
    assert not list(tmp_path.glob("c.bin")) and not list(tmp_path.glob("c.idx"))


def test_the_same_command_again_has_nothing_to_do(tmp_path: Path, model: str, capsys) -> None:
    args = [*plain(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1", "--json"]
    assert main(args) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("c.*")}
    capsys.readouterr()
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["already_made"] is True
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("c.*")} == before


def test_an_existing_output_of_other_settings_stays(tmp_path: Path, model: str, capsys) -> None:
    args = [*plain(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("c.*")}
    assert main([*args, "--max-document-bytes", "999"]) == 2
    assert "exists and was made from other inputs or settings" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("c.*")} == before
    assert main([*args, "--max-document-bytes", "999", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input", "nowhere.jsonl"], "does not exist and fits no file"),
        ([], "expected either --input PATH ... or --dataset NAME, found none"),
        (["--input", "{folder}/empty"], "holds no file named"),
        (["--input", "{folder}/blank.txt"], "gives no document with text in it"),
        (["--input", "{folder}/some.txt", "--tokenizer", "nothing.model"], "tokenizer nothing.model does not exist"),
        (["--input", "{folder}/some.txt", "--tokenizer", "{folder}/some.txt"], "is not a SentencePiece model"),
        (["--input", "{folder}/some.txt", "--eos-token", "<none>"], "no end-of-document token <none>"),
        (["--input", "{folder}/some.txt", "--workers", "0"], "--workers is 0"),
        (["--input", "{folder}/some.txt", "--validation-fraction", "1.5"], "expected a fraction"),
        (["--input", "{folder}/some.txt", "--validation-fraction", "1e-9"], "validation split got none of the 1"),
        (["--dataset", "{folder}/no/such"], "cannot be opened"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, model: str, capsys, monkeypatch, args: list[str], said: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "some.txt").write_text("some text")
    args = [arg.format(folder=tmp_path) for arg in args]
    assert main(["--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1", *args]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(tmp_path.glob("c.[bimw]*"))
