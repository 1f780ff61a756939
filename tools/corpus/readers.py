"""Raw records of a slice: where each stands, and its bytes, text or columns, not yet interpreted.

Memory is bounded by ``limit``, the longest record that is read; of longer ones only the fact remains.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from tools.corpus.sources import Slice, Source

BLOCK = 1 << 20
"""Bytes skipped at a time inside an over-long line."""


class Problem(NamedTuple):
    """Why a record cannot be used: a short category to count by, and the details."""

    category: str
    detail: str


class Raw(NamedTuple):
    """One record as found."""

    source: Source
    position: int
    """Byte offset of the line (in the decompressed text), or row number; -1 where a file breaks off."""
    payload: bytes | str | dict[str, Any] | Problem


class Meter:
    """How far a sequential source was read, in bytes on disk."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = self._seen = 0

    def watch(self, file: IO[bytes], size: int) -> None:
        """Measure by the position of ``file``, of ``size`` bytes, from now on."""
        self._file, self._size, self._seen = file, size, 0

    def passed(self) -> int:
        """Bytes since the last call; 0 where nothing is watched."""
        place = self._size if self._file is None or self._file.closed else self._file.tell()
        before, self._seen = self._seen, place
        return place - before


def read_slice(part: Slice, columns: list[str], whole_files: bool, limit: int, meter: Meter | None) -> Iterator[Raw]:
    """Records that start in ``part``. A file that breaks off gives its good records, then a ``Problem``."""
    source = part.source
    try:
        if source.kind == "dataset":
            from tools.corpus.hub import read_dataset

            yield from read_dataset(source, columns)
        elif source.kind == "parquet":
            yield from _read_parquet(part, columns)
        elif source.kind == "text" and whole_files:
            yield _read_file(source, limit, meter)
        else:
            yield from _read_lines(part, limit, meter)
    except (OSError, EOFError, zlib.error) as error:
        yield Raw(source, -1, Problem("corrupt file", str(error) or type(error).__name__))


@contextmanager
def open_stream(source: Source, meter: Meter | None = None) -> Iterator[IO[bytes]]:
    """The source's bytes, decompressed."""
    if source.path == "-":
        yield sys.stdin.buffer
        return
    with open(source.path, "rb") as raw:
        if meter:
            meter.watch(raw, source.size)
        if source.compression == "gzip":
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK)
        elif source.compression == "zstd":
            import pyarrow as pa

            yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"), BLOCK)
        else:
            yield raw


def _read_file(source: Source, limit: int, meter: Meter | None) -> Raw:
    with open_stream(source, meter) as file:
        content = file.read(limit + 1)
    return Raw(source, 0, content if len(content) <= limit else _too_long(limit))


def _read_lines(part: Slice, limit: int, meter: Meter | None) -> Iterator[Raw]:
    """Lines that start in ``[start, stop)``; sequential sources run to their end."""
    source, offset = part.source, part.start
    with open_stream(source, meter) as file:
        if offset:
            # A line that starts exactly at the range's start belongs to it: look at the byte before.
            file.seek(offset - 1)
            offset += _skip_line(file) - 1
        while source.sequential or offset < part.stop:
            line = file.readline(limit + 1)
            if not line:
                return
            length = len(line)
            if length > limit:
                length += 0 if line.endswith(b"\n") else _skip_line(file)
                yield Raw(source, offset, _too_long(limit))
            elif not line.isspace():
                yield Raw(source, offset, line)
            offset += length


def _skip_line(file: IO[bytes]) -> int:
    """Read on to the next line's start; returns the bytes passed."""
    passed = 0
    while block := file.readline(BLOCK):
        passed += len(block)
        if block.endswith(b"\n"):
            break
    return passed


def _too_long(limit: int) -> Problem:
    return Problem("too long", f"more than {limit} bytes (--max-document-bytes)")


def row_groups(path: str) -> int:
    """Row groups of a Parquet file; 1 for a damaged one, so that reading it reports the damage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).num_row_groups
    except (pa.ArrowException, OSError):
        return 1


def _read_parquet(part: Slice, columns: list[str]) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(part.source.path)
        row = sum(file.metadata.row_group(number).num_rows for number in range(part.start))
        present = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, row_groups=[part.start], columns=present):
            for values in _undecoded(batch).to_pylist():
                yield Raw(part.source, row, values)
                row += 1
    except (pa.ArrowException, OSError) as error:
        yield Raw(part.source, -1, Problem("corrupt file", str(error).splitlines()[0]))


def _undecoded(batch: Any) -> Any:
    """Text columns as bytes, so that one row that is not UTF-8 does not take the others with it."""
    import pyarrow as pa

    text = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    columns = [column.cast(text.get(column.type, column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
