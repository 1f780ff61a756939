"""Sources cut into units of work, and units dealt to shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .formats import rows_of
from .sources import Slice, Source, Unit

LARGEST_UNIT, SMALLEST_UNIT = 32 << 20, 1 << 20
"""Bounds of a unit of work in bytes; in between, an input makes about 64 units."""


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
        length = part.stop - part.start if rows_of(part.source.kind) is None else full
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
        elif (rows := rows_of(source.kind)) is not None:
            yield from (Slice(source, n, n + 1) for n in range(rows.pieces(source.path)))
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
