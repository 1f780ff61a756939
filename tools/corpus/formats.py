"""What a file holds: by its name, and by its first bytes, which are what counts for compression."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .raw import Raw
    from .sources import Slice


class Format(NamedTuple):
    """One kind of file."""

    suffixes: tuple[str, ...]
    """Endings by which it is known."""
    rows: str | None = None
    """The module that reads its rows (``Rows``); None = lines of text, cut anywhere and perhaps compressed."""


class Rows(Protocol):
    """What the module of a format has that does not consist of lines. Damage is a ``Problem``, never an exception."""

    def pieces(self, path: str) -> int:
        """In how many parts a file can be read independently, at least 1."""

    def read(self, part: Slice, columns: list[str]) -> Iterator[Raw]:
        """The rows of the piece number ``part.start``: payloads by column, texts as ``str`` or UTF-8 ``bytes``."""

    def columns(self, path: str) -> list[str]:
        """Names of a file's columns; none where it is damaged."""


FORMATS = {
    "text": Format((".txt", ".text", ".md")),
    "jsonl": Format((".jsonl", ".json", ".ndjson")),
    "parquet": Format((".parquet", ".pq"), ".tables"),
}
"""By the name that ``--format`` takes."""
SUFFIXES = {suffix: kind for kind, known in FORMATS.items() for suffix in known.suffixes}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""Endings that a name may have after its suffix."""
HEAD = 4096
"""Bytes of a file's beginning that are looked at."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
"""What follows ``BZh`` and a digit: the first block's mark, or the end's. The first three letters may begin a text."""
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_OTHERS = {
    b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive", b"\x04\x22\x4d\x18": "lz4-compressed", b"LZIP": "lzip-compressed",
    b"\xff\x06\x00\x00sNaPpY": "snappy-compressed", b"\x1f\x9d": "compressed by compress (.Z)",
    b"ARROW1": "an Arrow file", b"Obj\x01": "an Avro file", b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF", b"\x89PNG": "a PNG image", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array",
    b"MMIDIDX\x00": "a corpus index (.idx)",
}  # fmt: skip


def rows_of(kind: str) -> Rows | None:
    """What reads the rows of files of ``kind``; None for lines of text, and for what is no file."""
    module = FORMATS[kind].rows if kind in FORMATS else None
    return None if module is None else cast(Rows, import_module(module, __package__))


def kind_by_name(name: str) -> str | None:
    """A name in ``FORMATS`` by the file's suffix, a compression's ending aside; None for others."""
    return SUFFIXES.get(suffix_of(name))


def suffix_of(name: str) -> str:
    """The suffix in small letters, a compression's ending aside; empty where there is none."""
    stem = os.path.basename(name).lower()
    for ending in COMPRESSED:
        if stem.endswith(ending):
            stem = stem.removesuffix(ending)
            break
    return os.path.splitext(stem)[1]


def compression_of(head: bytes) -> str | None:
    """``gzip``, ``bzip2``, ``xz``, ``zstd`` or None, by a file's first ten bytes or more."""
    if head[:3] == b"BZh" and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame, with which pzstd begins
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def unreadable(head: bytes) -> tuple[str, str] | None:
    """Why a file of text or JSON lines that begins (decompressed) with ``head`` is neither.

    Returns:
        Category and detail of the problem; None where nothing speaks against it.
    """
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return "wrong encoding", f"{name} by its first bytes, expected UTF-8: iconv -f {name} -t UTF-8 converts it"
    if head.startswith(b"PAR1"):
        return "other format", "Parquet by its first bytes; read it with --format parquet"
    if (inner := compression_of(head)) is not None:
        return "other format", f"{inner} inside the compression; decompress it once"
    found = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        return "other format", f"{found} by its first bytes, expected text or JSON lines; unpack or convert it"
    if len(head) >= 16 and head.count(0) * 4 >= len(head):
        return "wrong encoding", "every fourth byte or more is NUL, as in UTF-16 or a binary file; expected UTF-8"
    return None
