"""From ``--input`` and ``--dataset`` to an ordered list of sources, and to units of work.

A unit is what one worker takes at a time. Uncompressed files are cut into byte ranges (small ones
are put together), Parquet files into row groups; compressed files, standard input and datasets can
only be read from the start and are one sequential unit each.
"""

from __future__ import annotations

import argparse
import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import DataError
from pretrain.paths import path_text

KINDS = ("text", "jsonl", "parquet")
LARGEST_UNIT, SMALLEST_UNIT = 32 << 20, 1 << 20
"""Bounds of a unit of work in bytes; in between, an input makes about 64 units."""
_SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, standard input, or one shard of a dataset."""

    path: str
    """Path, ``-``, or the dataset's name."""
    kind: str
    """``text``, ``jsonl``, ``parquet`` or ``dataset``."""
    compression: str | None = None
    """``gzip``, ``zstd`` or None; by the file's first bytes, not its name."""
    size: int = 0
    """Bytes on disk; 0 where unknown."""
    modified: int = 0
    """Modification time in nanoseconds, to notice that an input changed under an unfinished run."""
    dataset: tuple[str | None, str] | None = None
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


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to read."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input", nargs="+", action="extend", type=path_text, default=[], metavar="PATH",
        help="files, folders, glob patterns (quote them; ** goes into sub-folders), or - for standard input",
    )  # fmt: skip
    group.add_argument(
        "--include", nargs="+", action="extend", metavar="GLOB",
        help="in folders, take files whose name fits one of these",
    )  # fmt: skip
    group.add_argument(
        "--exclude", nargs="+", action="extend", default=[], metavar="GLOB", help="leave out paths that fit one"
    )
    group.add_argument("--format", choices=("auto", *KINDS), default="auto", help="default: by the file's name")
    group.add_argument(
        "--dataset", type=path_text, help="name on the Hugging Face hub, or a local path, read through `datasets`"
    )
    group.add_argument("--dataset-config", metavar="NAME", help="configuration of the dataset, such as en")
    group.add_argument("--split", default="train", help="split of the dataset (default: train)")
    group.add_argument("--text-column", default="text", help="column that holds the text (default: text)")
    group.add_argument("--template", help=r"text made of several columns, such as '{title}\n\n{text}'")
    group.add_argument(
        "--text-mode", choices=("file", "line"), default="file",
        help="in text files, one document per file (default) or per line",
    )  # fmt: skip


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Every source the options name, in order and without repeats.

    Raises:
        DataError: nothing was named, or a name fits no file.
    """
    if bool(args.input) == bool(args.dataset):
        raise DataError(
            "expected either --input PATH ... or --dataset NAME, found " + ("both" if args.input else "none")
        )
    if args.dataset:
        from tools.corpus.hub import dataset_sources

        return dataset_sources(args.dataset, args.dataset_config, args.split)
    seen: dict[str, Source] = {}
    for name in args.input:
        paths = ["-"] if name == "-" else _expand(name, args.include, args.exclude)
        for path in paths:
            seen.setdefault(path, _inspect(path, args.format))
    return list(seen.values())


def _expand(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
    if os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        found = [str(path) for path in Path(name).rglob("*") if path.is_file() and _wanted(path, include)]
    else:
        found = [path for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
    kept = sorted(path for path in found if not any(fnmatch.fnmatch(path, pattern) for pattern in exclude))
    if kept:
        return kept
    if found:
        raise DataError(f"--exclude leaves none of the {len(found)} files of input {name}")
    if os.path.isdir(name):
        wanted = ", ".join(include) if include else ", ".join(_SUFFIXES) + " (also .gz, .zst)"
        raise DataError(f"folder {name} holds no file named {wanted}; name others with --include")
    raise DataError(f"input {name} does not exist and fits no file; expected a file, a folder or a quoted glob pattern")


def _wanted(path: Path, include: Sequence[str] | None) -> bool:
    if include:
        return any(fnmatch.fnmatch(path.name, pattern) for pattern in include)
    return _kind_by_name(path.name) is not None


def _kind_by_name(name: str) -> str | None:
    stem = name.lower()
    for ending in (".gz", ".zst"):
        stem = stem.removesuffix(ending)
    return _SUFFIXES.get(os.path.splitext(stem)[1])


def _inspect(path: str, given: str) -> Source:
    if path == "-":
        return Source(path="-", kind="jsonl" if given == "auto" else given)
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}") from None
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    kind = given if given != "auto" else _kind_by_name(os.path.basename(path)) or "text"
    return Source(path=path, kind=kind, compression=compression, size=status.st_size, modified=status.st_mtime_ns)


def plan_units(sources: Sequence[Source], whole_files: bool) -> Iterator[Unit]:
    """Cut sources into units, in input order.

    Args:
        sources: what to read.
        whole_files: a text file is one document and must not be cut.
    """
    number, size = 0, 0
    gathered: list[Slice] = []
    # Of the input alone, so that a restart with another number of workers cuts it the same way.
    full = min(LARGEST_UNIT, max(SMALLEST_UNIT, sum(source.size for source in sources) // 64))
    for part in _slices(sources, whole_files, full):
        alone = part.source.sequential
        length = part.stop - part.start if part.source.kind != "parquet" else full
        if gathered and (alone or size + length > full):
            yield Unit(number, tuple(gathered), size)
            number, gathered, size = number + 1, [], 0
        if alone:
            yield Unit(number, (part,), length)
            number += 1
        else:
            gathered.append(part)
            size += length
    if gathered:
        yield Unit(number, tuple(gathered), size)


def _slices(sources: Sequence[Source], whole_files: bool, full: int) -> Iterator[Slice]:
    for source in sources:
        if source.sequential or (source.kind == "text" and whole_files):
            yield Slice(source, 0, source.size)
        elif source.kind == "parquet":
            from tools.corpus.readers import row_groups

            yield from (Slice(source, n, n + 1) for n in range(row_groups(source.path)))
        else:
            for start in range(0, source.size, full):
                yield Slice(source, start, min(start + full, source.size))


def shard_units(units: Sequence[Unit], number: int, shards: int) -> list[Unit]:
    """The ``number``-th of ``shards`` contiguous runs of units, even in bytes: together, in order, they are all."""
    total = sum(max(unit.size, 1) for unit in units)
    taken, before = [], 0
    for unit in units:
        if before * shards // total == number:
            taken.append(unit)
        before += max(unit.size, 1)
    return taken
