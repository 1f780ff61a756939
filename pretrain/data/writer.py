"""Streaming writer of Megatron's indexed format, in flat memory, published at once at the end.

Tokens go straight to a temporary ``.bin``; the index entries are spooled to disk, and the index is
put together in chunks when the writer is finished. Until then no final name exists.
"""

from __future__ import annotations

import glob
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import psutil

from pretrain.data.indexed import HEADER, MAGIC, VERSION, dtype_code, index_path, tokens_path
from pretrain.errors import DataError
from pretrain.files import sync_folder

CHUNK = 1 << 18
"""Index entries held in memory at once."""
MAX_SEQUENCE = 2**31 - 1
"""Tokens in one sequence: the index keeps lengths as int32."""


class IndexedWriter:
    """Writes ``PREFIX.bin`` and ``PREFIX.idx``; a context manager that publishes on a clean exit.

    Args:
        prefix: path without ``.bin`` / ``.idx``; its folder is created.
        dtype: token dtype, see ``pretrain.data.indexed.token_dtype``.

    After ``finish`` the sha256 of the two files stand in ``checksums`` by suffix (``bin``, ``idx``).
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self._code = dtype_code(self.dtype)
        self.num_tokens = 0
        self.num_documents = 0
        self.num_sequences = 0
        self.checksums: dict[str, str] = {}
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self._temporary: dict[str, Path] = {}
        self._data = self._open("bin")
        self._lengths = self._open("lengths")
        self._ends = self._open("ends")
        self._hash = hashlib.sha256()

    def _open(self, kind: str) -> IO[bytes]:
        path = Path(f"{self.prefix}.{kind}.writing")
        self._temporary[kind] = path
        return path.open("w+b")

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def add(self, tokens: np.ndarray) -> None:
        """Append one document of one sequence, ``(length,)``."""
        self.add_documents(tokens, np.array([len(tokens)]))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents of one sequence each: ``tokens`` is their concatenation, ``lengths`` their sizes."""
        self.add_sequences(tokens, lengths, np.arange(1, len(lengths) + 1))

    def add_sequences(self, tokens: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        """Append documents of any number of sequences.

        Args:
            tokens: concatenation of all sequences, ``(sum(lengths),)``, any integer dtype.
            lengths: tokens in each sequence, ``(sequences,)``.
            ends: for each document, the number of sequences of this call up to and including it.

        Raises:
            DataError: a token id does not fit the dtype, or a sequence is longer than the index can say.
        """
        self._check(tokens, lengths)
        block = np.ascontiguousarray(tokens, self.dtype.newbyteorder("<")).data.cast("B")
        self._data.write(block)
        self._hash.update(block)
        self._lengths.write(np.asarray(lengths, "<i4").tobytes())
        self._ends.write((np.asarray(ends, "<i8") + self.num_sequences).tobytes())
        self.num_tokens += len(tokens)
        self.num_sequences += len(lengths)
        self.num_documents += len(ends)

    def _check(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        if len(lengths) and int(np.max(lengths)) > MAX_SEQUENCE:
            raise DataError(f"a document has {int(np.max(lengths))} tokens, at most {MAX_SEQUENCE} fit; cut it up")
        if len(tokens) == 0 or tokens.dtype == self.dtype:
            return
        info = np.iinfo(self.dtype)
        low, high = int(tokens.min()), int(tokens.max())
        if low < info.min or high > info.max:
            raise DataError(f"token ids run from {low} to {high}, {self.dtype} holds {info.min} to {info.max}")

    def finish(self) -> None:
        """Write the index and give both files their final names; the index, which readers ask for, comes last."""
        index = self._open("idx")
        self._write_index(index)
        self.checksums["bin"] = self._hash.hexdigest()
        for file in (self._data, index):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        index_path(self.prefix).unlink(missing_ok=True)
        os.replace(self._temporary.pop("bin"), tokens_path(self.prefix))
        os.replace(self._temporary.pop("idx"), index_path(self.prefix))
        sync_folder(Path(self.prefix).parent)
        self.discard()

    def _write_index(self, index: IO[bytes]) -> None:
        digest = hashlib.sha256()
        for block in self._index_blocks():
            index.write(block)
            digest.update(block)
        self.checksums["idx"] = digest.hexdigest()

    def _index_blocks(self) -> Iterator[bytes]:
        yield HEADER.pack(MAGIC, VERSION, self._code, self.num_sequences, self.num_documents + 1)
        yield from (chunk.tobytes() for chunk in _chunks(self._lengths, np.dtype("<i4")))
        offset = 0
        for lengths in _chunks(self._lengths, np.dtype("<i4")):
            ends = offset + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            yield np.concatenate(([offset], ends[:-1])).astype("<i8").tobytes()
            offset = int(ends[-1])
        yield np.zeros(1, "<i8").tobytes()
        yield from (chunk.tobytes() for chunk in _chunks(self._ends, np.dtype("<i8")))

    def discard(self) -> None:
        """Drop every temporary file; what was published stays."""
        for file in (self._data, self._lengths, self._ends):
            file.close()
        for path in self._temporary.values():
            path.unlink(missing_ok=True)
        self._temporary.clear()


def _chunks(file: IO[bytes], dtype: np.dtype) -> Iterator[np.ndarray]:
    file.seek(0)
    while block := file.read(CHUNK * dtype.itemsize):
        yield np.frombuffer(block, dtype)


def publish(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a file under a temporary name in its folder, flush it to disk, and rename it to ``path``.

    What processes of this machine left there that were killed on the way goes.
    """
    begin = f".{path.name}.{socket.gethostname()}."
    temporary = path.with_name(f"{begin}{os.getpid()}.writing")
    try:
        with temporary.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for left in path.parent.glob(f"{glob.escape(begin)}*.writing"):
        process = left.name[len(begin) :].removesuffix(".writing")
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)
    sync_folder(path.parent)
