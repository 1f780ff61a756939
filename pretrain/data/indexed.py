"""Reader of Megatron's indexed format: ``PREFIX.bin`` (token ids) and ``PREFIX.idx`` (where documents are).

The layout is that of Megatron-LM's ``IndexedDataset`` (magic ``MMIDIDX``, version 1), so existing
corpora work both ways. Both files are memory-mapped: opening one costs a few page reads whatever its size.

Index layout, little-endian: 9 bytes of magic, uint64 version, uint8 dtype code, uint64 number of
sequences S, uint64 number of document boundaries D, int32[S] sequence lengths in tokens, int64[S]
byte offsets of the sequences, int64[D] document boundaries as sequence numbers (the first is 0,
the last S), and int8[S] sequence modes in multimodal corpora only (ignored here).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pretrain.command import told
from pretrain.errors import DataError
from pretrain.paths import why_no_file

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, sequences, document boundaries."""

DTYPES: dict[int, np.dtype] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint16),
}
"""Megatron's dtype codes, without 6 and 7 (floating point), which no token id has."""


def dtype_code(dtype: np.dtype) -> int:
    """Megatron's code of a token dtype. Raises ``DataError`` for dtypes the format does not know."""
    for code, known in DTYPES.items():
        if known == dtype:
            return code
    raise DataError(f"token dtype is {dtype}, expected one of {', '.join(str(d) for d in DTYPES.values())}")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of Megatron's two token dtypes that holds every id below ``vocab_size``."""
    return np.dtype(np.uint16) if vocab_size <= 65536 else np.dtype(np.int32)


def index_path(prefix: str | Path) -> Path:
    """``PREFIX.idx``."""
    return Path(f"{prefix}.idx")


def tokens_path(prefix: str | Path) -> Path:
    """``PREFIX.bin``."""
    return Path(f"{prefix}.bin")


def named_by_file(prefix: str | Path) -> str:
    """What to say where ``prefix`` is one of a corpus's own files; empty where it is none."""
    for suffix in (".bin", ".idx", ".manifest.json"):
        short = str(prefix).removesuffix(suffix)
        if short != str(prefix) and index_path(short).is_file():
            return f"and this is a file of the corpus {short}: leave out {suffix}"
    return ""


class IndexedDataset:
    """Documents and the flat token stream of one corpus, memory-mapped.

    Args:
        prefix: path without ``.bin`` / ``.idx``.
        allow_empty: accept a corpus without tokens, such as a shard of preprocessing that got no input.

    Raises:
        DataError: a file is missing, truncated, of another format, or the corpus holds no tokens.
    """

    def __init__(self, prefix: str | Path, allow_empty: bool = False):
        self.prefix = str(prefix)
        index, data = index_path(prefix), tokens_path(prefix)
        for path in (index, data):
            if not path.is_file():
                made = f"as written by {told('corpus', 'make', '--output', self.prefix)}"
                raise DataError(
                    f"corpus file {path} {why_no_file(path)}; expected {self.prefix}.bin and {self.prefix}.idx, "
                    f"{named_by_file(self.prefix) or made}"
                )
        self.dtype, sequences, boundaries = self._read_header(index)
        self._check_index_size(index, sequences, boundaries)
        empty = sequences == 0 or data.stat().st_size == 0
        if empty and not allow_empty:
            raise DataError(f"corpus {self.prefix} holds no tokens; give preprocessing some input with text in it")
        offset = HEADER.size
        self.lengths = _mapped(index, "<i4", offset, sequences)
        offset += self.lengths.nbytes
        self.pointers = _mapped(index, "<i8", offset, sequences)
        offset += self.pointers.nbytes
        self.boundaries = _mapped(index, "<i8", offset, boundaries)
        self._check_ends(index, data)
        self._tokens = _mapped(data, self.dtype.newbyteorder("<"), 0, data.stat().st_size // self.dtype.itemsize)

    @staticmethod
    def _read_header(index: Path) -> tuple[np.dtype, int, int]:
        with index.open("rb") as file:
            raw = file.read(HEADER.size)
        if raw[: len(MAGIC)] != MAGIC[: len(raw)] or not raw:
            raise DataError(
                f"{index} is not an index of Megatron's format: it starts with {raw[:9]!r}, expected {MAGIC!r}; "
                "preprocess the corpus again"
            )
        if len(raw) < HEADER.size:
            raise DataError(f"{index} is truncated: {len(raw)} bytes, expected at least {HEADER.size}; copy it again")
        _, version, code, sequences, boundaries = HEADER.unpack(raw)
        if version != VERSION:
            raise DataError(f"{index} has format version {version}, expected {VERSION}; preprocess the corpus again")
        if code not in DTYPES:
            known = ", ".join(f"{c} ({d})" for c, d in DTYPES.items())
            raise DataError(f"{index} has token dtype code {code}, expected one of {known}; preprocess it again")
        return DTYPES[code], sequences, boundaries

    @staticmethod
    def _check_index_size(index: Path, sequences: int, boundaries: int) -> None:
        found = index.stat().st_size
        expected = HEADER.size + 12 * sequences + 8 * boundaries
        # Multimodal corpora append one mode byte per sequence.
        if found not in (expected, expected + sequences):
            state = "truncated" if found < expected else "damaged"
            raise DataError(
                f"{index} is {state}: {found} bytes, expected {expected} for {sequences} sequences and "
                f"{boundaries} document boundaries; copy or preprocess it again"
            )

    def _check_ends(self, index: Path, data: Path) -> None:
        """The checks that cost no pass over the index; ``pretrain.data.soundness`` makes the rest."""
        found = data.stat().st_size
        expected = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(self.lengths) else 0
        if found != expected:
            state = "truncated" if found < expected else "too long"
            raise DataError(
                f"{data} is {state}: {found} bytes, expected {expected} by its index; copy or preprocess it again"
            )
        sequences = len(self.lengths)
        if len(self.boundaries) < 1 or self.boundaries[0] != 0 or self.boundaries[-1] != sequences:
            raise DataError(
                f"{index} is damaged: its document boundaries do not run from 0 to {sequences}; preprocess it again"
            )

    @property
    def num_documents(self) -> int:
        """Documents in the corpus."""
        return len(self.boundaries) - 1

    @property
    def num_sequences(self) -> int:
        """Sequences in the corpus: one per document, unless the writer split documents."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens in the corpus, end-of-document tokens included."""
        return len(self._tokens)

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, ``(length,)``, in the corpus' dtype: a view on the mapped file.

        Raises:
            DataError: the index contradicts itself there.
        """
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of a corpus of {self.num_documents}")
        first, end = int(self.boundaries[number]), int(self.boundaries[number + 1])
        if first == end:
            return self._tokens[:0]
        if 0 <= first < end <= self.num_sequences:
            start, item = int(self.pointers[first]), self.dtype.itemsize
            lengths = self.lengths[first:end]
            stop = start + int(lengths.sum(dtype=np.int64)) * item
            # Against both neighbours: an offset that is wrong by itself would pass for a document's.
            before = 0 if first == 0 else int(self.pointers[first - 1]) + int(self.lengths[first - 1]) * item
            after = self.num_tokens * item if end == self.num_sequences else int(self.pointers[end])
            if start == before and stop == after and (lengths >= 0).all():
                return self._tokens[start // item : stop // item]
        raise DataError(
            f"{index_path(self.prefix)} is damaged: it says of document {number} what cannot be; run "
            f"{told('corpus', 'verify', self.prefix)}"
        )

    def tokens(self, start: int, count: int) -> np.ndarray:
        """``count`` tokens of the flat stream from token ``start``: a view on the mapped file, ``(count,)``."""
        if start < 0 or start + count > self.num_tokens:
            raise IndexError(f"tokens {start} to {start + count} of a corpus of {self.num_tokens}")
        return self._tokens[start : start + count]


def _mapped(path: Path, dtype: str | np.dtype, offset: int, count: int) -> np.ndarray:
    """``count`` entries of a file, mapped; an empty range cannot be mapped."""
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))
