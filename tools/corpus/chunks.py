"""Documents in bounded numbers at a time, from finished parts or from existing corpora."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.indexed import IndexedDataset

from .parts import DIGEST, Part, document_digest

CHUNK_TOKENS = 1 << 20
"""Tokens at a time; a longer document is a chunk of its own."""
_CHUNK_DOCUMENTS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive documents."""

    tokens: np.ndarray
    """All of them back to back, ``(tokens,)``."""
    lengths: np.ndarray
    """Tokens in each sequence, ``(sequences,)``."""
    ends: np.ndarray
    """For each document, the number of sequences up to and including it, ``(documents,)``."""
    digests: np.ndarray
    """``(documents,)`` of ``DIGEST``; empty where they were not asked for."""

    def select(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(tokens, lengths, ends)`` of the documents where ``kept``, bool ``(documents,)``, is true."""
        if kept.all():
            return self.tokens, self.lengths, self.ends
        sequences = np.diff(self.ends, prepend=0)
        kept_sequences = np.repeat(kept, sequences)
        tokens = self.tokens[np.repeat(kept_sequences, self.lengths)]
        return tokens, self.lengths[kept_sequences], np.cumsum(sequences[kept])


def part_chunks(paths: Iterable[Path], digests: bool) -> Iterator[Chunk]:
    """Chunks of finished parts, in order; ``digests`` says whether they are needed."""
    for path in paths:
        part = Part(path)
        lengths = part.lengths()
        all_digests = part.digests() if digests else np.zeros(0, DIGEST)
        offset = 0
        for first, end in _groups(lengths):
            count = int(lengths[first:end].sum())
            yield Chunk(
                tokens=part.tokens(offset, count),
                lengths=lengths[first:end],
                ends=np.arange(1, end - first + 1),
                digests=all_digests[first:end],
            )
            offset += count


def corpus_chunks(data: IndexedDataset, digests: bool) -> Iterator[Chunk]:
    """Chunks of an existing corpus; ``digests`` says whether they are needed."""
    offset = 0
    for start in range(0, data.num_documents, _CHUNK_DOCUMENTS):
        boundaries = np.asarray(data.boundaries[start : start + _CHUNK_DOCUMENTS + 1])
        lengths = np.asarray(data.lengths[boundaries[0] : boundaries[-1]])
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[boundaries - boundaries[0]]
        for first, end in _groups(np.diff(starts)):
            own = boundaries[first : end + 1] - boundaries[0]
            count = int(starts[end] - starts[first])
            tokens = np.array(data.tokens(offset, count))
            yield Chunk(
                tokens=tokens,
                lengths=lengths[own[0] : own[-1]],
                ends=own[1:] - own[0],
                digests=_digests(tokens, starts[first : end + 1] - starts[first]) if digests else np.zeros(0, DIGEST),
            )
            offset += count


def _groups(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about ``CHUNK_TOKENS`` tokens each."""
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
        yield first, end
        first = end


def _digests(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    raw = b"".join(document_digest(tokens[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True))
    return np.frombuffer(raw, DIGEST)
