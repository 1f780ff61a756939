"""A bounded, uniform and reproducible sample of documents, whatever the size of the input."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator

PIECE_BYTES = 4096
"""SentencePiece's limit on one training sentence; longer lines are cut."""

_UNKNOWN = "\u2585"


class Sample:
    """Documents with the smallest seeded hashes of their numbers, up to a number of bytes in all.

    Args:
        limit: bytes to hold.
        seed: chooses the documents.
    """

    def __init__(self, limit: int, seed: int):
        self.limit, self.seed = limit, seed
        self.seen = 0
        self.size = 0
        self._heap: list[tuple[int, int, str]] = []

    def add(self, text: str) -> None:
        """Offer the next document."""
        key = hashlib.blake2b(f"{self.seed}/{self.seen}".encode(), digest_size=8).digest()
        priority = -int.from_bytes(key, "big")
        self.seen += 1
        if self.size >= self.limit and priority <= self._heap[0][0]:
            return
        heapq.heappush(self._heap, (priority, self.seen, text))
        self.size += len(text.encode())
        while len(self._heap) > 1 and self.size - len(self._heap[0][2].encode()) >= self.limit:
            self.size -= len(heapq.heappop(self._heap)[2].encode())

    @property
    def held(self) -> int:
        """Documents in the sample."""
        return len(self._heap)

    def documents(self) -> list[str]:
        """The sample, in input order."""
        return [text for _, _, text in sorted(self._heap, key=lambda entry: entry[1])]


def sentences(documents: Iterable[str]) -> Iterator[str]:
    """Lines of the documents, cut to what SentencePiece accepts; empty ones left out.

    It drops a whole line for one NUL or one of its sign for unknown bytes, so lines end there.
    """
    for document in documents:
        for line in document.replace("\0", "\n").replace(_UNKNOWN, "\n").splitlines():
            while len(line.encode()) > PIECE_BYTES:
                yield line[: PIECE_BYTES // 4]
                line = line[PIECE_BYTES // 4 :]
            if line:
                yield line
