"""What a run or a tool leaves behind, from anybody's hands: JSON documents, and lines of JSON that may grow.

A file may be cut off, damaged or of something else: what cannot be used is one line, or counted and said.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pretrain import outside
from pretrain.errors import DataError
from pretrain.files import write_atomically

Rows = list[dict[str, Any]]

AT_ONCE = 1 << 22
LONGEST_LINE = 1 << 24
"""Bytes; a longer line is nobody's record and is not kept in memory."""
ANCHOR = 256
"""Bytes before a place in a file by which it is known again."""


@dataclass
class News:
    """What a file of lines holds beyond what was read of it before."""

    rows: Rows = field(default_factory=list)
    again: bool = False
    """Whether the file was written anew, as when a run goes back: ``rows`` are all there is, those before are void."""
    left_out: int = 0
    """Lines that cannot be used."""
    more: bool = False
    """Whether there is more to read already, since ``poll`` was to stop before the end."""


class Follower:
    """The records of a file of JSON lines, while others add to it.

    A last line without its end is just being written, and comes with a later ``poll``. Lines that are no object, that
    lack one of ``needed``, or have text or a number beyond reason where one of ``numbers`` is expected, are counted.

    Args:
        path: may come later, and may go.
        needed: numbers without which a record is none.
        numbers: numbers that a record may have.
    """

    def __init__(self, path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = ()):
        self.path, self.needed, self.numbers = path, needed, frozenset((*needed, *numbers))
        self.half = b""
        """The last line, as far as it is written."""
        self._place, self._identity, self._anchor = 0, (0, 0), b""
        self._too_long = False

    def poll(self, most: int | None = None) -> News:
        """What is new. A file that is not there holds nothing.

        Args:
            most: bytes after which to stop for now, about; None = at the end of the file.

        Raises:
            OSError: it cannot be read, or is no file.
        """
        try:
            with outside.reading(self.path) as file:
                return self._read(file, most)
        except FileNotFoundError:
            again, self._place = bool(self._place), 0
            self._forget((0, 0))
            return News(again=again)

    def _read(self, file: BinaryIO, most: int | None) -> News:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        news = News()
        if not self._is_known(file, identity):
            news.again, self._place = bool(self._place), 0
            self._forget(identity)
        file.seek(self._place)
        until = math.inf if most is None else self._place + most
        while piece := file.read(AT_ONCE if most is None else min(AT_ONCE, most)):
            self._place += len(piece)
            self._anchor = (self._anchor + piece)[-ANCHOR:]
            lines, end, self.half = (self.half + piece).rpartition(b"\n")
            if end:
                self._take(lines, news)
            if len(self.half) > LONGEST_LINE:
                self.half, self._too_long = b"", True
            if self._place >= until:
                news.more = self._place < status.st_size
                break
        return news

    def _forget(self, identity: tuple[int, int]) -> None:
        self.half, self._anchor, self._identity, self._too_long = b"", b"", identity, False

    def _is_known(self, file: BinaryIO, identity: tuple[int, int]) -> bool:
        """Whether the file still is the one that was read, and only longer. A number of an inode is given out again."""
        file.seek(self._place - len(self._anchor))
        return identity == self._identity and file.read(len(self._anchor)) == self._anchor

    def _take(self, lines: bytes, news: News) -> None:
        rows = None if self._too_long else _flat(lines)
        if rows is not None:
            good = rows if self._are_records(rows) else [row for row in rows if self._are_records([row])]
            news.rows += good
            news.left_out += len(rows) - len(good)
            return
        for line in lines.split(b"\n"):
            too_long, self._too_long = self._too_long, False
            if not too_long and not line.strip():
                continue
            row = None if too_long else self.usable(line)
            if row is None:
                news.left_out += 1
            else:
                news.rows.append(row)

    def usable(self, line: bytes) -> dict[str, Any] | None:
        """The record in a line, None where there is none."""
        try:
            row = outside.parse_json(line)
        except ValueError:
            return None
        return row if isinstance(row, dict) and self._are_records([row]) else None

    def _are_records(self, rows: Rows) -> bool:
        for name in self.needed:
            if not all([name in row for row in rows]):
                return False
        return all(all(map(is_number, [row[name] for row in rows if name in row])) for name in self.numbers)


def _flat(lines: bytes) -> Rows | None:
    """The objects of lines that hold one each and nothing inside it but figures and texts, parsed at once, in half the
    time; None where that is not sure, or one of them is none."""
    count = lines.count(b"\n") + 1
    begins_and_ends = lines[:1] == b"{" and lines[-1:] == b"}" and lines.count(b"}\n{") == count - 1
    if not begins_and_ends or not lines.count(b"{") == lines.count(b"}") == count or b"[" in lines:
        return None
    try:
        rows: Rows = outside.parse_json(b"[" + lines.replace(b"\n", b",\n") + b"]")
    except ValueError:
        return None
    return rows


def is_number(value: Any) -> bool:
    """A number to compute with, or the null that a run that diverged writes."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 62)


def read_rows(path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = ()) -> Rows:
    """The JSON objects of a file of lines; nothing if there is none.

    A last line without its end is left out, unless it is whole. Others that cannot be used (see ``Follower``) are left
    out too, and a warning on stderr says how many.

    Raises:
        OSError: the file cannot be read.
    """
    follower = Follower(path, needed, numbers)
    news = follower.poll()
    last = follower.usable(follower.half)  # of a writer that puts line ends between, not behind
    rows = [*news.rows, last] if last is not None else news.rows
    if news.left_out:
        total = len(rows) + news.left_out
        print(f"warning: {news.left_out} of {total} lines of {path} cannot be used and are left out", file=sys.stderr)
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line; a symbolic link in the file's place is not followed.

    Raises:
        OSError: the file cannot be written.
    """
    with outside.open_own(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the records of steps after ``step``, which will be done again, and what is no record of a step."""
    if path.exists():
        kept = [row for row in read_rows(path, ["step"]) if row["step"] is not None and row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        remedy: what makes the file anew; ends the error.

    Raises:
        DataError: the file is missing, is not readable or holds something else.
    """
    try:
        content = outside.read_bytes(path, 256 * outside.MEGABYTE)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    try:
        document = outside.parse_json(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        found = "no JSON" if document is None else f"JSON, but {_kind(document)}"
        raise DataError(f"{path} holds {found}, expected one JSON object; {remedy}")
    return document


def misfit(error: Exception) -> str:
    """What is wrong with a document that code did not get through, in a user's words."""
    if isinstance(error, KeyError):
        return f"it has no '{error.args[0]}'"
    return "a value in it is not of the kind that is expected there"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the bare value {str(value)[:40]!r}"
