"""Exact de-duplication in bounded memory: all but the first of several equal documents are marked.

Digests are dealt to bucket files by their value, and each bucket is sorted on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

BUCKET_DOCUMENTS = 1 << 20
"""Documents sorted at once, on average."""
_ENTRY = np.dtype([("low", "<u8"), ("high", "<u8"), ("number", "<u8")])


def find_duplicates(digests: Iterable[np.ndarray], documents: int, folder: Path) -> np.ndarray:
    """Mark every document that equals an earlier one.

    Args:
        digests: those of consecutive documents, arrays of ``DIGEST``.
        documents: how many there are in all, at least 1.
        folder: for temporary files of about 25 bytes per document.

    Returns:
        bool ``(documents,)``, mapped from a file in ``folder``.
    """
    buckets = -(-documents // BUCKET_DOCUMENTS)
    paths = [folder / f"bucket-{number:05d}" for number in range(buckets)]
    _fill_buckets(digests, paths)
    duplicate = np.memmap(folder / "duplicates", bool, mode="w+", shape=(documents,))
    for path in paths:
        entries = np.fromfile(path, _ENTRY)
        order = np.lexsort((entries["number"], entries["high"], entries["low"]))
        entries = entries[order]
        same = (entries["low"][1:] == entries["low"][:-1]) & (entries["high"][1:] == entries["high"][:-1])
        duplicate[entries["number"][1:][same]] = True
        path.unlink()
    return duplicate


def _fill_buckets(digests: Iterable[np.ndarray], paths: list[Path]) -> None:
    number = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for some in digests:
            entries = np.empty(len(some), _ENTRY)
            entries["low"], entries["high"] = some["low"], some["high"]
            entries["number"] = np.arange(number, number + len(some))
            number += len(some)
            # By the upper half: the lower one decides about the validation split.
            which = some["high"] % np.uint64(len(files))
            for bucket in np.unique(which):
                files[int(bucket)].write(entries[which == bucket].tobytes())
