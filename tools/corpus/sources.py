"""What is read: sources, slices of them, and units of work.

A unit is what one worker takes at a time. Uncompressed files are cut into byte ranges (small ones
are put together), Parquet files into row groups; compressed files, standard input and datasets can
only be read from the start and are one sequential unit each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pretrain.errors import DataError

from .formats import FORMATS


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, standard input, or one shard of a dataset."""

    path: str
    """Path, ``-``, or the dataset's name."""
    kind: str
    """A name in ``tools.corpus.formats.FORMATS``, or ``dataset``."""
    compression: str | None = None
    """``gzip``, ``bzip2``, ``xz``, ``zstd`` or None; by the file's first bytes, not its name."""
    size: int = 0
    """Bytes on disk; 0 where unknown."""
    modified: int = 0
    """Modification time in nanoseconds, to notice that an input changed under an unfinished run."""
    dataset: tuple[str | None, str | None] | None = None
    """Configuration name and split of a dataset."""
    shard: tuple[int, int] = (0, 1)
    """Which part of how many, for a dataset."""

    @property
    def label(self) -> str:
        """How messages and the rejects file name it."""
        number, shards = self.shard
        return f"{self.path}[{number}/{shards}]" if shards > 1 else self.path

    @property
    def sequential(self) -> bool:
        """Whether it can only be read from its start."""
        return self.compression is not None or self.path == "-" or self.kind == "dataset"

    @property
    def counts_rows(self) -> bool:
        """Whether positions in it are numbers of rows, and not bytes."""
        return self.kind == "dataset" or FORMATS[self.kind].rows is not None

    def check_unchanged(self) -> None:
        """Raise ``DataError`` if the file is not the one that was found when the run began."""
        if self.kind == "dataset" or self.path == "-":
            return
        status = os.stat(self.path)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise DataError(
                f"input {self.path} changed while it was read; when it is complete, start again with --overwrite"
            )


@dataclass(frozen=True)
class Slice:
    """A range of a source: bytes of a file, or row groups of a Parquet file."""

    source: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Unit:
    """Slices that one worker reads in order; ``number`` is the unit's place in the output."""

    number: int
    slices: tuple[Slice, ...]
    size: int
    """Bytes to read, for the progress bar."""

    @property
    def sequential(self) -> bool:
        """Whether it is one source of unknown length, read in segments."""
        return self.slices[0].source.sequential
