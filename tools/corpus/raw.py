"""One record as it was found, before anybody looks at what it says."""

from __future__ import annotations

from typing import Any, NamedTuple

from .sources import Source


class Problem(NamedTuple):
    """Why a record cannot be used: a short category to count by, and the details."""

    category: str
    detail: str


class Raw(NamedTuple):
    """One record as found."""

    source: Source
    position: int
    """Byte offset of the line (in the decompressed text), or row number; -1 where it is about the whole file, or
    about all that would follow."""
    payload: bytes | str | dict[str, Any] | Problem
