"""A compressed file that breaks off, or is damaged, gives all whole records before that place, then one reject."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pretrain.data.manifest import read_manifest
from tests.tools.test_preprocess import decoded
from tools.corpus.sources import Source
from tools.corpus.streams import BrokenStreamError, open_stream
from tools.preprocess import main

Compress = Callable[[bytes], bytes]
COMPRESSIONS: dict[str, Compress] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
LINES = [json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(4000)]


def oracle(compression: str, content: bytes) -> int:
    """Bytes that the library gives of ``content``, fed byte by byte until it fails."""
    decoder = {
        "gzip": lambda: __import__("zlib").decompressobj(31),
        "bzip2": bz2.BZ2Decompressor,
        "xz": lzma.LZMADecompressor,
        "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    }[compression]()
    size = 0
    for place in range(len(content)):
        if decoder.eof:
            break
        try:
            size += len(decoder.decompress(content[place : place + 1]))
        except Exception:
            break
    return size


def read(path: Path, compression: str) -> tuple[bytes, bool]:
    """What comes out line by line, and whether it ended well."""
    source = Source(path=str(path), kind="jsonl", compression=compression, size=path.stat().st_size)
    found = b""
    with open_stream(source) as file:
        try:
            while block := file.read1(1000):
                found += block
        except BrokenStreamError:
            return found, False
    return found, True


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_byte_before_a_break_comes_out(tmp_path: Path, compression: str) -> None:
    text = b"".join(random.Random(1).sample(LINES, len(LINES)))
    whole = COMPRESSIONS[compression](text)
    random_ = random.Random(2)
    path = tmp_path / "x"
    path.write_bytes(whole + whole)
    assert read(path, compression) == (text * 2, True), "streams one after the other are one"
    for number in range(12):
        if number % 2:
            made = whole[: random_.randrange(20, len(whole))]
        else:
            changed = bytearray(whole)
            changed[random_.randrange(20, len(whole))] ^= 1 << random_.randrange(8)
            made = bytes(changed)
        path.write_bytes(made)
        found, good = read(path, compression)
        assert not good or found == text
        assert len(found) >= oracle(compression, made), number


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_whole_records_count_and_the_break_is_one_reject(tmp_path: Path, model: str, compression: str) -> None:
    whole = COMPRESSIONS[compression](b"".join(LINES[:2000]))
    for name, content in {"cut": whole[:-4], "garbage": whole + b"garbage", "padded": whole + b"\0" * 8}.items():
        path = tmp_path / f"{name}.jsonl.any"
        path.write_bytes(content)
        args = ["--input", str(path), "--format", "jsonl", "--tokenizer", model, "--output", str(tmp_path / name)]
        assert main([*args, "--workers", "1"]) == 0
        manifest = read_manifest(tmp_path / name)
        assert manifest is not None
        if name == "padded":
            assert (manifest.counts["documents"], manifest.counts["rejected"]) == (2000, 0)
            continue
        assert manifest.counts["documents"] >= (2000 if name == "garbage" or compression in ("gzip", "xz") else 0)
        assert manifest.counts["rejected"] == 1
        reject = json.loads((tmp_path / f"{name}.rejects.jsonl").read_text())
        assert (reject["reason"], reject["position"]) == ("corrupt file", -1)


def test_a_plain_file_cut_in_a_line_says_so(tmp_path: Path, model: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"".join(LINES[:20])[:-5])
    args = [
        "--input",
        str(tmp_path / "x.jsonl"),
        "--tokenizer",
        model,
        "--output",
        str(tmp_path / "c"),
        "--workers",
        "1",
    ]
    assert main(args) == 0
    reject = json.loads((tmp_path / "c.rejects.jsonl").read_text())
    assert reject["reason"] == "broken JSON" and "the file may be cut off" in reject["detail"]
    assert len(decoded(tmp_path / "c", model)) == 19


def test_a_damaged_row_group_keeps_its_good_rows_and_counts_the_lost_ones(tmp_path: Path, model: str) -> None:
    random_ = random.Random(1)
    documents = [f"document {number} {random_.randbytes(40).hex()}" for number in range(3000)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": documents}), path, compression="gzip", use_dictionary=False, data_page_size=20_000)
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).total_compressed_size * 3 // 4
    content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    args = ["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None and manifest.counts["rejected"] == 1
    reject = json.loads((tmp_path / "c.rejects.jsonl").read_text())
    lost = 3000 - manifest.counts["documents"]
    assert 0 < lost < 2900 and f"{lost} rows are lost" in reject["detail"]


def test_zstd_with_a_long_window_is_read(tmp_path: Path, model: str) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "x.jsonl.zst").write_bytes(compressor.compress(b"".join(LINES)) + compressor.flush())
    args = ["--input", str(tmp_path / "x.jsonl.zst"), "--tokenizer", model, "--output", str(tmp_path / "c")]
    assert main([*args, "--workers", "1"]) == 0
    manifest = read_manifest(tmp_path / "c")
    assert manifest is not None and (manifest.counts["documents"], manifest.counts["rejected"]) == (len(LINES), 0)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_standard_input(tmp_path: Path, model: str, monkeypatch, compression: str) -> None:
    content = COMPRESSIONS[compression](b"".join(LINES[:50]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    args = ["--input", "-", "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main(args) == 0
    assert len(decoded(tmp_path / "c", model)) == 50


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros in a few kilobytes, as one line that is too long: told, in bounded memory."""
    compressor = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "x.jsonl.zst").open("wb") as file:
        for _ in range(64):
            file.write(compressor.compress(b" " * (16 << 20)))
        file.write(compressor.flush())
    program = (
        "import resource, sys; from tools.corpus.sources import Source; from tools.corpus.streams import open_stream\n"
        "source = Source(path=sys.argv[1], kind='jsonl', compression='zstd')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_stream(source) as file:\n"
        "    size = sum(len(block) for block in iter(lambda: file.read(1 << 20), b''))\n"
        "print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x.jsonl.zst"], capture_output=True, text=True)
    size, grown = map(int, done.stdout.split())
    assert size == 1 << 30 and grown < 150, done.stderr
