"""A look at the first records before hours of work: do they have the columns that were asked for?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from pretrain.errors import DataError, nearest

from .extract import Settings
from .formats import rows_of
from .raw import Raw
from .readers import read_slice
from .sources import Slice, Source

PROBED = 100
"""Records that are looked at."""


def check_columns(sources: Sequence[Source], settings: Settings) -> None:
    """Raise ``DataError`` if none of the first records of the first source with columns has those asked for.

    Records that are broken do not count, nor does standard input, which can be read only once.
    """
    source = next((source for source in sources if source.kind != "text" and source.path != "-"), None)
    if source is None:
        return
    found: set[str] = set()
    for record in _records(source, settings):
        found |= record.keys()
    missing = [name for name in settings.columns if name not in found]
    if found and missing:
        raise DataError(
            f"{source.label} has no column '{missing[0]}'{nearest(missing[0], found)}; it has "
            f"{', '.join(sorted(found)[:20])}; choose with --text-column or --template"
        )


def _records(source: Source, settings: Settings) -> list[dict[str, Any]]:
    if (rows := rows_of(source.kind)) is not None:
        names = rows.columns(source.path)
        return [dict.fromkeys(names)] if names else []
    if source.kind == "dataset":
        from .hub import first_row

        return [first_row(source)]
    raws = read_slice(Slice(source, 0, source.size), [], False, settings.max_document_bytes, None)
    return [record for raw in islice(raws, PROBED) if isinstance(record := _parse(raw), dict)]


def _parse(raw: Raw) -> Any:
    try:
        return json.loads(raw.payload) if isinstance(raw.payload, bytes) else None
    except (ValueError, RecursionError):
        return None
