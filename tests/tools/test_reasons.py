"""Where nothing is left, the known reason is said, and every reject is on record."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data.manifest import read_manifest
from tests.tools.test_preprocess import decoded
from tests.tools.texts import write_jsonl
from tools import train_tokenizer
from tools.preprocess import main

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x.jsonl", GOOD)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("x.jsonl")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
    return content.getvalue()


def parquet(**columns: list) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


CASES = {
    "array.json": (b'[{"text": "one"}, {"text": "two"}]', "JSON array (objects in an array: expected one object"),
    "pretty.json": (json.dumps([{"text": "a"}], indent=1).encode(), "expected one object per line; jq -c"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "UTF-16 by its first bytes, expected UTF-8: iconv -f UTF-16"),
    "utf16le.jsonl": (GOOD.decode().encode("utf-16-le"), "every fourth byte or more is NUL, as in UTF-16"),
    "utf32.txt": (GOOD.decode().encode("utf-32"), "UTF-32 by its first bytes"),
    "utf16.jsonl.gz": (gzip.compress(GOOD.decode().encode("utf-16")), "UTF-16 by its first bytes"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "not UTF-8: unexpected end of data at byte 3"),
    "broken.jsonl": (b'{"text": \n' * 3, "3 rejected: broken JSON; the first is"),
    "cut.jsonl.gz": (gzip.compress(GOOD)[:15], "it breaks off before its end"),
    "cut.jsonl.bz2": (bz2.compress(GOOD)[:30], "it breaks off before its end"),
    "twice.jsonl.gz": (gzip.compress(lzma.compress(GOOD)), "xz inside the compression"),
    "zip.jsonl": (zipped(), "a zip archive by its first bytes"),
    "tar.jsonl.gz": (tarred(), "a tar archive by its first bytes"),
    "lz4.jsonl": (b"\x04\x22\x4d\x18" + GOOD, "lz4-compressed by its first bytes"),
    "named.jsonl": (parquet(text=["a"]), "Parquet by its first bytes; read it with --format parquet"),
    "a.parquet.gz": (gzip.compress(parquet(text=["a"])), "Parquet inside gzip; decompress it"),
    "a.parquet": (GOOD, "Parquet magic bytes not found"),
    "numbers.parquet": (parquet(text=[1, 2]), "not text (column 'text' is a int, expected text)"),
    "nested.parquet": (parquet(text=[{"inner": "x"}]), "not text (column 'text' is a dict, expected text)"),
    "nothing.jsonl": (b"", "of 0 records there is none"),
    "blank.jsonl": (b'{"text": ""}\n{"text": " "}\n', "of 2 records 2 empty"),
    "double.jsonl": (b'{"text": "one", "text": "two"}\n', "duplicate key (several values of column 'text')"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_reason_is_said_and_on_record(tmp_path: Path, model: str, capsys, name: str) -> None:
    content, said = CASES[name]
    (tmp_path / name).write_bytes(content)
    args = ["--input", str(tmp_path / name), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    for _ in range(2):
        assert main(args) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and said in errors[0], errors
        assert errors[0].startswith("error: the input gives no document with text in it, so nothing was written: of ")
    rejects = tmp_path / "c.rejects.jsonl"
    assert rejects.exists() == (" rejected: " in errors[0])
    if rejects.exists():
        assert str(rejects) in errors[0] and json.loads(rejects.read_text().splitlines()[0])["source"]
    # What is mended can be made at once.
    (tmp_path / name).unlink()
    write_jsonl(tmp_path / "good.jsonl", ["one"])
    assert main([*args[2:], "--input", str(tmp_path / "good.jsonl")]) == 0
    assert not rejects.exists()


@pytest.mark.parametrize("name", ["array.json", "utf16.jsonl", "cut.jsonl.gz", "broken.jsonl"])
def test_training_a_tokenizer_says_the_same(tmp_path: Path, capsys, name: str) -> None:
    content, said = CASES[name]
    (tmp_path / name).write_bytes(content)
    args = ["--input", str(tmp_path / name), "--vocab-size", "384", "--output", str(tmp_path / "t")]
    assert train_tokenizer.main(args) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "t.rejects.jsonl").exists()


def test_rows_of_a_file_without_the_column_are_counted(tmp_path: Path, model: str) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(text=["one", "two"]))
    (tmp_path / "b.parquet").write_bytes(parquet(body=["three", "four", "five"]))
    args = ["--input", str(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None
    assert (manifest.counts["records"], manifest.counts["rejected: missing column"]) == (5, 3)


def test_two_columns_of_one_name_are_not_chosen_between(tmp_path: Path, model: str) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(text=["one"]))
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "b.parquet")
    args = ["--input", str(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    assert json.loads((tmp_path / "c.rejects.jsonl").read_text())["reason"] == "duplicate column"


def test_a_dictionary_column_is_text_too(tmp_path: Path, model: str) -> None:
    column = pa.array(["good", None, "good", "better"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    args = ["--input", str(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    assert decoded(tmp_path / "c", model) == ["good", "good", "better"]
    assert json.loads((tmp_path / "c.rejects.jsonl").read_text())["reason"] == "missing column"


def test_byte_order_marks_and_line_ends_are_no_text(tmp_path: Path, model: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree\r\n\xef\xbb\xbffour\r\n")
    args = ["--input", str(tmp_path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, "--text-mode", "line"]) == 0
    assert decoded(tmp_path / "c", model) == ["one", "two", "three", "four"]


def test_an_input_that_changes_while_it_is_read_ends_the_run(tmp_path: Path, model: str, capsys, monkeypatch) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["one", "two"])
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]

    def append(text: str) -> None:
        with source.open("a") as file:
            file.write('{"text": "three"}\n')

    with monkeypatch.context() as patch:
        patch.setattr("tools.corpus.filters.Filters.failed", lambda self, text: append(text))
        assert main(args) == 2
    assert "changed while it was read" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0
    assert len(decoded(tmp_path / "c", model)) == 4


def test_a_lost_mount_is_no_damaged_file(tmp_path: Path, model: str, capsys, monkeypatch) -> None:
    """An input that cannot be read any more is not left out: the run stops, and goes on when it is back."""
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(GOOD))
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]

    def stale(*args: object) -> None:
        raise OSError(116, "Stale file handle", str(source))

    with monkeypatch.context() as patch:
        patch.setattr("tools.corpus.streams._Gzip.__init__", stale)
        assert main(args) == 2
    assert "Stale file handle" in capsys.readouterr().err
    assert main(args) == 0
    assert decoded(tmp_path / "c", model) == ["one", "two"]


def test_duplicates_that_go_are_counted(tmp_path: Path, model: str, capsys) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["one", "two", "one", "one"])
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, "--deduplicate", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["documents"], summary["duplicates"], summary["outputs"][0]["documents"]) == (4, 2, 2)
