"""Bytes of a source, decompressed as far as they are good.

A stream that breaks off or is damaged gives every byte before that place, then ``BrokenStreamError``: readers that
fill a large buffer would throw good bytes away with the bad ones.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from .formats import HEAD, compression_of
from .sources import Source

BLOCK = 1 << 20
"""Bytes buffered after decompression."""
STEP = 1 << 16
"""Bytes given to a decompressor, and taken from it, at a time."""
_ZSTD_STEP = 1 << 10
"""The same for zstd, whose decompressor gives all it can: at most 128 kB for every four bytes."""
_ZSTD_WINDOW = 1 << 31
"""What ``zstd --long=31`` needs."""


class BrokenStreamError(Exception):
    """Compressed bytes that break off, or are damaged."""


class _Damage(Exception):
    """Damage found in the bytes from ``place`` on."""

    def __init__(self, place: int, reason: str):
        super().__init__(place, reason)
        self.place, self.reason = place, reason


class Meter:
    """How far a sequential source was read, in bytes on disk."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = self._seen = 0

    def watch(self, file: IO[bytes], size: int) -> None:
        """Measure by the position of ``file``, of ``size`` bytes, from now on."""
        self._file, self._size, self._seen = file, size, 0

    def passed(self) -> int:
        """Bytes since the last call; 0 where nothing is watched."""
        place = self._size if self._file is None or self._file.closed else self._file.tell()
        # A damaged file is read twice: not backwards.
        before, self._seen = self._seen, max(place, self._seen)
        return self._seen - before


class _Gzip:
    """One member of a gzip file, with the interface of ``bz2.BZ2Decompressor``."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)
        self._waiting = b""
        self.needs_input = True

    def decompress(self, data: bytes, size: int) -> bytes:
        made = self._inner.decompress(self._waiting + data, size)
        self._waiting = self._inner.unconsumed_tail
        self.needs_input = not self._waiting and len(made) < size
        return made

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Zstd:
    """One frame of a zstd file, with the interface of ``bz2.BZ2Decompressor``."""

    def __init__(self) -> None:
        self._inner: Any = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        self._waiting = memoryview(b"")

    def decompress(self, data: bytes, size: int) -> bytes:
        given = memoryview(data) if data else self._waiting
        made: bytes = self._inner.decompress(given[:_ZSTD_STEP])
        self._waiting = given[_ZSTD_STEP:]
        return made

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + bytes(self._waiting)


_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": _Zstd,
}


def _decoded(raw: IO[bytes], make: Callable[[], Any], fine_from: float = float("inf")) -> Iterator[bytes]:
    """All streams (members, frames) of ``raw``, one after the other; from ``fine_from`` on byte by byte."""
    decoder, place = make(), 0
    while chunk := raw.read(STEP if place < fine_from else 1):
        data = chunk
        while not decoder.eof or (data := data.lstrip(b"\0")):  # padding may stand between streams
            if decoder.eof:
                decoder = make()
            try:
                made = decoder.decompress(data, STEP)
            except (OSError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                raise _Damage(place, str(error)) from None
            data = decoder.unused_data if decoder.eof else b""
            if made:
                yield made
            if not decoder.eof and decoder.needs_input:
                break
        place += len(chunk)
    if not decoder.eof:
        raise BrokenStreamError("it breaks off before its end")


class Decompressed(io.RawIOBase):
    """The decompressed bytes of ``raw``, all good ones before a damaged place included."""

    def __init__(self, raw: IO[bytes], compression: str):
        self._blocks = self._salvaged(raw, _DECODERS[compression])
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = memoryview(next(self._blocks, b""))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    @staticmethod
    def _salvaged(raw: IO[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
        given = 0
        try:
            for block in _decoded(raw, make):
                given += len(block)
                yield block
        except _Damage as damage:
            # The call that failed threw away what it had decoded before the damage. It is made again in small steps.
            if raw.seekable():
                raw.seek(0)
                try:
                    for block in _decoded(raw, make, damage.place):
                        if len(block) > given:
                            yield block[given:]
                        given = max(0, given - len(block))
                except _Damage:
                    pass
            raise BrokenStreamError(f"it is damaged: {damage.reason}") from None


@contextmanager
def open_stream(source: Source, meter: Meter | None = None) -> Iterator[io.BufferedReader]:
    """The source's bytes, decompressed."""
    if source.path == "-":
        file: Any = io.BufferedReader(sys.stdin.buffer, BLOCK)
        compression = compression_of(file.peek(HEAD))
        yield file if compression is None else _decompressed(file, compression)
        file.detach()  # or standard input is closed with it
        return
    with open(source.path, "rb") as raw:
        if meter:
            meter.watch(raw, source.size)
        yield raw if source.compression is None else _decompressed(raw, source.compression)


def _decompressed(raw: IO[bytes], compression: str) -> Any:
    return io.BufferedReader(Decompressed(raw, compression), BLOCK)
