"""Reading what a run left behind, from anybody's hands: JSON documents, and lines of JSON.

A file may be cut off, damaged or of something else: what cannot be used is one line, or counted and said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.errors import DataError

Rows = list[dict[str, Any]]


def read_rows(path: Path, numbers: Sequence[str] = ()) -> Rows:
    """The JSON objects of a file of lines; nothing if there is none.

    A last line without its end is just being written and is left out. Other lines that are no object, or lack one
    of ``numbers``, are left out too, and a warning on stderr says how many.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    with outside.reading(path) as file:
        *lines, last = file.read().split(b"\n")
    found = [_parse(line) for line in lines if line.strip()]
    if isinstance(whole := _parse(last), dict):  # of a writer that puts line ends between, not behind
        found.append(whole)
    rows = [row for row in found if isinstance(row, dict) and all(_has_number(row, name) for name in numbers)]
    if left_out := len(found) - len(rows):
        print(f"warning: {left_out} of {len(found)} lines of {path} cannot be used and are left out", file=sys.stderr)
    return rows


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        remedy: what makes the file anew; ends the error.

    Raises:
        DataError: the file is missing, is not readable or holds something else.
    """
    try:
        content = outside.read_bytes(path, 256 * outside.MEGABYTE)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    document = _parse(content)
    if not isinstance(document, dict):
        found = "no JSON" if document is None else f"JSON, but {_kind(document)}"
        raise DataError(f"{path} holds {found}, expected one JSON object; {remedy}")
    return document


def misfit(error: Exception) -> str:
    """What is wrong with a document that code did not get through, in a user's words."""
    if isinstance(error, KeyError):
        return f"it has no '{error.args[0]}'"
    return "a value in it is not of the kind that is expected there"


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _has_number(row: dict[str, Any], name: str) -> bool:
    """A number, or the null that a run that diverged writes."""
    value = row.get(name)
    return name in row and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)))


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the bare value {str(value)[:40]!r}"
