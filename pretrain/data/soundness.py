"""Whether an index is, byte for byte, what was written; found out without making a run wait.

Training reads the flat stream of tokens and never asks the index where a document is, so damage there would go by
unseen. Every byte is checked: against the manifest's checksum, or, where there is none, lengths against offsets and
the order of boundaries. Up to ``AT_ONCE`` bytes that takes some milliseconds, and is done before a corpus opens. Where
it would take seconds (2 GB for 10^11 tokens), a thread does it while the run sets up and trains; what it finds
ends the run at the next step, or at the end: no run ends well on a damaged index. One process of a host looks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np

from pretrain.data.indexed import HEADER, IndexedDataset, index_path
from pretrain.errors import DataError
from pretrain.files import sha256_of

AT_ONCE = 16 << 20
"""Bytes of an index that are checked before the corpus opens."""
ENTRIES = 1 << 20
"""Index entries looked at together."""


def index_problems(data: IndexedDataset) -> Iterator[str]:
    """Offsets must follow from the lengths, and document boundaries never go back; the first problem of each kind.

    Reads the file instead of the mapped arrays: pages of those would count as this process's memory.
    """
    path, sequences, documents = index_path(data.prefix), data.num_sequences, data.num_documents
    with path.open("rb") as lengths_file, path.open("rb") as file:
        lengths_file.seek(HEADER.size)
        file.seek(HEADER.size + 4 * sequences)
        place = 0
        for start in range(0, sequences, ENTRIES):
            count = min(ENTRIES, sequences - start)
            lengths = np.fromfile(lengths_file, "<i4", count).astype(np.int64)
            pointers = np.fromfile(file, "<i8", count)
            expected = place + np.concatenate(([0], np.cumsum(lengths))) * data.dtype.itemsize
            wrong = np.flatnonzero((pointers != expected[:-1]) | (lengths < 0))
            if len(wrong):
                here = int(wrong[0])
                yield (
                    f"{path}: sequence {start + here} starts at byte {int(pointers[here])} with {int(lengths[here])} "
                    f"tokens, expected byte {int(expected[here])} by the lengths before it"
                )
                return
            place = int(expected[-1])
        last = 0
        for start in range(0, documents + 1, ENTRIES):
            ends = np.fromfile(file, "<i8", min(ENTRIES, documents + 1 - start))
            back = np.flatnonzero(np.diff(ends, prepend=last) < 0)
            if len(back):
                yield f"{path}: document {start + int(back[0]) - 1} ends before it starts"
                return
            last = int(ends[-1])


def _problem(data: IndexedDataset, checksum: str | None) -> str:
    path = index_path(data.prefix)
    if checksum is not None and (own := sha256_of(path)) == checksum:
        return ""
    found = next(index_problems(data), "")
    if not found and checksum is not None:
        found = f"{path} was changed: its sha256 is {own[:12]}, its manifest says {checksum[:12]}"
    return found and f"{found}; copy the corpus again from where it is sound, or preprocess it again"


class IndexCheck:
    """The check of one corpus' index: done when this exists, or going on behind it.

    Args:
        data: the corpus.
        checksum: sha256 of the index, from the manifest; None: it is not known.
    """

    def __init__(self, data: IndexedDataset, checksum: str | None):
        self._problem = ""
        self._thread: threading.Thread | None = None
        if index_path(data.prefix).stat().st_size <= AT_ONCE:
            self._problem = _problem(data, checksum)
            return
        self._thread = threading.Thread(target=self._run, args=(data, checksum), name="index-check", daemon=True)
        self._thread.start()

    def _run(self, data: IndexedDataset, checksum: str | None) -> None:
        try:
            self._problem = _problem(data, checksum)
        except OSError as error:
            self._problem = f"{index_path(data.prefix)} cannot be read: {error.strerror}"

    def require(self, wait: bool = False) -> None:
        """Raise what was found so far; with ``wait``, when all is checked.

        Raises:
            DataError: the index is damaged.
        """
        if wait and self._thread is not None:
            self._thread.join()
        if self._problem:
            raise DataError(self._problem)


_known: dict[tuple[object, ...], IndexCheck] = {}


def check_index(data: IndexedDataset, checksum: str | None) -> IndexCheck:
    """The check of ``data``'s index; a file that several corpora of this process share is looked at once."""
    path = index_path(data.prefix)
    status = os.stat(path)
    key = (os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, checksum)
    if key not in _known:
        _known[key] = IndexCheck(data, checksum)
    return _known[key]
