"""Raw records of a slice: where each stands, and its bytes, text or columns, not yet interpreted.

Memory is bounded by ``limit``, the longest record that is read; of longer ones only the fact remains.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import IO

from .formats import HEAD, rows_of, unreadable
from .raw import Problem, Raw
from .sources import Slice, Source
from .streams import BLOCK, BrokenStreamError, Meter, open_stream


def read_slice(part: Slice, columns: list[str], whole_files: bool, limit: int, meter: Meter | None) -> Iterator[Raw]:
    """Records that start in ``part``. A file that breaks off gives its good records, then a ``Problem``.

    Raises:
        DataError: the file is another one than when the run began.
        OSError: the file cannot be read any more, which says nothing of what it holds.
    """
    source = part.source
    try:
        if source.kind == "dataset":
            from .hub import read_dataset

            yield from read_dataset(source, columns)
        elif (rows := rows_of(source.kind)) is not None:
            if source.compression is None:
                yield from rows.read(part, columns)
            else:
                what = f"{source.kind.capitalize()} inside {source.compression}; decompress it"
                yield Raw(source, -1, Problem("other format", what))
        elif source.kind == "text" and whole_files:
            yield _read_file(source, limit, meter)
        else:
            yield from _read_lines(part, limit, meter)
    except BrokenStreamError as error:
        source.check_unchanged()
        yield Raw(source, -1, Problem("corrupt file", f"{error}; what follows is lost"))
    source.check_unchanged()


def _unreadable(source: Source, file: io.BufferedReader) -> Problem | None:
    """What the whole file is, if it is no text."""
    head = file.peek(HEAD)[:HEAD] if source.sequential else os.pread(file.fileno(), HEAD, 0)
    found = unreadable(head)
    return None if found is None else Problem(*found)


def _read_file(source: Source, limit: int, meter: Meter | None) -> Raw:
    with open_stream(source, meter) as file:
        if problem := _unreadable(source, file):
            return Raw(source, -1, problem)
        content = file.read(limit + 1)
    return Raw(source, 0, content if len(content) <= limit else _too_long(limit))


def _read_lines(part: Slice, limit: int, meter: Meter | None) -> Iterator[Raw]:
    """Lines that start in ``[start, stop)``; sequential sources run to their end."""
    source, offset = part.source, part.start
    with open_stream(source, meter) as file:
        if problem := _unreadable(source, file):
            if offset == 0:
                yield Raw(source, -1, problem)
            return
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
