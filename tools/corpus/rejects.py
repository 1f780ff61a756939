"""Records that could not be used: their file, and what is said where nothing else is left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .parts import Part


def rejects_path(prefix: str) -> Path:
    """``PREFIX.rejects.jsonl``."""
    return Path(f"{prefix}.rejects.jsonl")


def write_rejects(parts: Iterable[Path], path: Path) -> None:
    """Publish the rejected records of all parts, in order; no file where there are none."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        for part in parts:
            Part(part).copy_rejects(file)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if size:
        os.replace(temporary, path)
    else:
        temporary.unlink()
        path.unlink(missing_ok=True)


def described(reject: Mapping[str, Any], rows: bool = False) -> str:
    """One rejected record, for a message."""
    place = f", {'row' if rows else 'byte'} {reject['position']}" if reject["position"] >= 0 else ""
    return f"{reject['source']}{place}: {reject['reason']} ({reject['detail']})"


def nothing_left(counts: Mapping[str, int], path: Path) -> str:
    """Why an input of ``counts`` gives no document; ``path`` is its rejects file."""
    message = "the input gives no document with text in it, so nothing was written: "
    reasons = [f"{count:,} {name}" for name, count in counts.items() if ": " in name and count]
    if counts.get("empty"):
        reasons.append(f"{counts['empty']:,} empty")
    message += f"of {counts['records']:,} records " + (", ".join(reasons) or "there is none")
    with suppress(OSError), path.open("rb") as file:
        first = json.loads(file.readline())
        return f"{message}; the first is {described(first)}; all are in {path}"
    return message + "; look at --input and --text-column"
