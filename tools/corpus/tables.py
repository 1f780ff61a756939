"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .raw import Problem, Raw
from .sources import Slice

ROWS = 256
"""Rows decoded together."""


def pieces(path: str) -> int:
    """Row groups of a Parquet file; 1 for a damaged one or one without any, so that reading it reports that."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return max(1, pq.ParquetFile(path).num_row_groups)
    except (pa.ArrowException, OSError) as error:
        _raise_if_of_the_system(error)
        return 1


def read(part: Slice, columns: list[str]) -> Iterator[Raw]:
    """The rows of one row group; columns that the file lacks are missing in each of them.

    Raises:
        OSError: the file cannot be read any more, which says nothing of what it holds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, first, row, rows = part.source, 0, 0, 0
    try:
        file = pq.ParquetFile(source.path)
        if part.start >= file.num_row_groups:
            return
        first = row = sum(file.metadata.row_group(number).num_rows for number in range(part.start))
        rows = file.metadata.row_group(part.start).num_rows
        names = file.schema_arrow.names
        if doubled := [name for name in columns if names.count(name) > 1]:
            yield Raw(source, -1, Problem("duplicate column", f"{names.count(doubled[0])} columns '{doubled[0]}'"))
            return
        present = [name for name in columns if name in names]
        if not present:
            # Batches without columns have no rows either.
            yield from (Raw(source, number, {}) for number in range(first, first + rows))
            return
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[part.start], columns=present):
            for values in _undecoded(batch).to_pylist():
                yield Raw(source, row, values)
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        _raise_if_of_the_system(error)
        lost = f"; {first + rows - row} rows are lost" if rows else ""
        yield Raw(source, -1, Problem("corrupt file", str(error).splitlines()[0] + lost))


def _raise_if_of_the_system(error: Exception) -> None:
    # Arrow raises OSError for damaged data too, but without a number.
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def columns(path: str) -> list[str]:
    """Names of the columns of a Parquet file; none where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.ParquetFile(path).schema_arrow.names
    except (pa.ArrowException, OSError):
        return []
    return names


def _undecoded(batch: Any) -> Any:
    """Text columns as bytes, so that one row that is not UTF-8 does not take the others with it."""
    import pyarrow as pa

    def cast(column: Any) -> Any:
        if pa.types.is_dictionary(column.type):
            return cast(column.dictionary).take(column.indices)
        return column.cast(text.get(column.type, column.type))

    text = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return pa.RecordBatch.from_arrays([cast(column) for column in batch], names=batch.schema.names)
