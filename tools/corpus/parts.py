"""Part files: the finished output of one segment of one unit, published whole or not at all.

One file holds token ids, document lengths (int32), document digests (16 bytes each), rejected records
(JSON lines) and a summary, so a single rename says that the segment is done. Parts outlive a kill; a
restart goes on after them. Tokens and rejects are streamed, so memory does not grow with the unit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

_FOOTER = struct.Struct("<QQQQQ8s")
_MAGIC = b"SMETPART"
DIGEST = np.dtype([("low", "<u8"), ("high", "<u8")])
"""A document's digest as two numbers."""


@dataclass(kw_only=True)
class PartSummary:
    """Counts of one part."""

    unit: int
    segment: int
    last: bool
    """Whether the unit ends with this segment."""
    dtype: str = ""
    documents: int = 0
    tokens: int = 0
    records: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents kept."""
    read_bytes: int = 0
    """Bytes of input (compressed, where it is), for the progress bar."""
    checksum: int = 0
    """Of the records of a sequential unit, to notice that another stream follows after a restart."""
    empty: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    """Documents that a filter left out, by filter."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Records that could not be used, by reason."""


def document_digest(tokens: np.ndarray) -> bytes:
    """16 bytes that depend on the document's token ids (end-of-document token included), not on their dtype."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").data, digest_size=16).digest()


def part_path(folder: Path, unit: int, segment: int) -> Path:
    """Where a segment's part stands."""
    return folder / f"part-{unit:08d}-{segment:06d}"


class PartWriter:
    """Writes one part; a context manager that publishes on a clean exit."""

    def __init__(self, folder: Path, summary: PartSummary, dtype: np.dtype):
        self.summary = summary
        summary.dtype = dtype.name
        self._dtype = dtype.newbyteorder("<")
        self._path = part_path(folder, summary.unit, summary.segment)
        self._names = [folder / f"{kind}-{self._path.name}-{os.getpid()}" for kind in ("tokens", "rejects")]
        self._tokens: IO[bytes] = self._names[0].open("wb")
        self._rejects: IO[bytes] = self._names[1].open("w+b")
        self._lengths = array("i")
        self._digests = bytearray()
        self._rejected: Counter[str] = Counter()

    def __enter__(self) -> PartWriter:
        return self

    def add(self, tokens: np.ndarray, text_bytes: int) -> None:
        """Append a document, ``(length,)``, end-of-document token included."""
        self._tokens.write(tokens.astype(self._dtype).data)
        self._digests += document_digest(tokens)
        self._lengths.append(len(tokens))
        self.summary.tokens += len(tokens)
        self.summary.text_bytes += text_bytes

    def reject(self, record: dict[str, Any]) -> None:
        """Note a record that could not be used; its ``reason`` is counted."""
        self._rejects.write(json.dumps(record).encode() + b"\n")
        self._rejected[record["reason"]] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for file, name in zip((self._tokens, self._rejects), self._names, strict=True):
                file.close()
                name.unlink(missing_ok=True)

    def _publish(self) -> None:
        self.summary.documents = len(self._lengths)
        self.summary.rejected = dict(sorted(self._rejected.items()))
        sizes = [self._tokens.tell(), 4 * len(self._lengths), len(self._digests), self._rejects.tell()]
        self._tokens.write(np.asarray(self._lengths, "<i4").tobytes())
        self._tokens.write(self._digests)
        self._rejects.seek(0)
        shutil.copyfileobj(self._rejects, self._tokens)
        summary = json.dumps(asdict(self.summary)).encode()
        self._tokens.write(summary + _FOOTER.pack(*sizes, len(summary), _MAGIC))
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        os.replace(self._names[0], self._path)


class Part:
    """A published part."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            file.seek(-_FOOTER.size, 2)
            *self._sizes, magic = _FOOTER.unpack(file.read())
            assert magic == _MAGIC, path
            file.seek(sum(self._sizes[:4]))
            self.summary = PartSummary(**json.loads(file.read(self._sizes[4])))
        self.dtype = np.dtype(self.summary.dtype).newbyteorder("<")

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Token ids ``start`` to ``start + count`` of the part, ``(count,)``."""
        return np.fromfile(self.path, self.dtype, count, offset=start * self.dtype.itemsize)

    def lengths(self) -> np.ndarray:
        """Tokens in each document, ``(documents,)``."""
        return np.fromfile(self.path, "<i4", self._sizes[1] // 4, offset=self._sizes[0])

    def digests(self) -> np.ndarray:
        """Digests of the documents, ``(documents,)`` of ``DIGEST``."""
        return np.fromfile(self.path, DIGEST, self._sizes[2] // DIGEST.itemsize, offset=sum(self._sizes[:2]))

    def copy_rejects(self, file: IO[bytes]) -> None:
        """Append the rejected records to ``file``, one JSON object per line."""
        left = self._sizes[3]
        with self.path.open("rb") as source:
            source.seek(sum(self._sizes[:3]))
            while left:
                block = source.read(min(left, 1 << 20))
                file.write(block)
                left -= len(block)
