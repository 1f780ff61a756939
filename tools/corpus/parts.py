"""Part files: the finished output of one segment of one unit, published whole or not at all.

One file holds token ids, document lengths (int32), rejected records (JSON lines) and a summary, so a
single rename says that the segment is done. Parts outlive a kill; a restart goes on after them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.writer import publish

_FOOTER = struct.Struct("<QQQQ8s")
_MAGIC = b"SMETPART"


@dataclass(kw_only=True)
class PartSummary:
    """Counts of one part."""

    unit: int
    segment: int
    last: bool
    """Whether the unit ends with this segment."""
    dtype: str
    documents: int = 0
    tokens: int = 0
    records: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents kept."""
    read_bytes: int = 0
    """Bytes of input, for the progress bar."""
    empty: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


def part_path(folder: Path, unit: int, segment: int) -> Path:
    """Where a segment's part stands."""
    return folder / f"part-{unit:08d}-{segment:06d}"


def write_part(
    folder: Path, summary: PartSummary, tokens: np.ndarray, lengths: np.ndarray, rejects: Iterable[dict[str, Any]]
) -> None:
    """Publish a part: ``tokens`` is ``(sum(lengths),)`` in the final dtype, ``lengths`` ``(documents,)``."""
    blocks = [
        tokens.tobytes(),
        lengths.astype("<i4").tobytes(),
        "".join(json.dumps(reject) + "\n" for reject in rejects).encode(),
        json.dumps(asdict(summary)).encode(),
    ]
    footer = _FOOTER.pack(*(len(block) for block in blocks), _MAGIC)
    publish(part_path(folder, summary.unit, summary.segment), [*blocks, footer])


class Part:
    """A published part."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            file.seek(-_FOOTER.size, 2)
            *self._sizes, magic = _FOOTER.unpack(file.read())
            assert magic == _MAGIC, path
            file.seek(sum(self._sizes[:3]))
            self.summary = PartSummary(**json.loads(file.read(self._sizes[3])))

    def tokens(self) -> np.ndarray:
        """Token ids of all documents, ``(tokens,)``."""
        dtype = np.dtype(self.summary.dtype).newbyteorder("<")
        return np.fromfile(self.path, dtype, self._sizes[0] // dtype.itemsize)

    def lengths(self) -> np.ndarray:
        """Tokens in each document, ``(documents,)``."""
        return np.fromfile(self.path, "<i4", self._sizes[1] // 4, offset=self._sizes[0])

    def rejects(self) -> bytes:
        """Rejected records, one JSON object per line."""
        with self.path.open("rb") as file:
            file.seek(sum(self._sizes[:2]))
            return file.read(self._sizes[2])
