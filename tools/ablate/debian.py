"""Text of Debian's dictionaries: packages of the distribution's own servers, without any account."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import DataError
from pretrain.files import write_atomically

DOCUMENT = 20_000
"""Characters after which a document ends with the next entry: dictionaries have no documents of their own."""
SUFFIX = ".dict.dz"


def documents(package: str, folder: Path) -> Path:
    """The text of a package such as ``dict-gcide`` as JSONL in ``folder``, fetched unless it is there.

    Raises:
        DataError: it cannot be had here, or holds no dictionary.
    """
    target = folder / f"{package}.jsonl"
    if target.exists():
        return target
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataError(
            f"{package} is a package of Debian, and there is no apt-get here; leave text.debian out of the matrix, or "
            "name another corpus (C4: docs/data.md) in data.train and data.validation"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _run("apt-get", "download", "-q", package, place=place)
        for archive in Path(place).glob("*.deb"):
            _run("dpkg-deb", "-x", archive.name, "x", place=place)
        books = sorted(Path(place, "x").rglob(f"*{SUFFIX}"))
        if not books:
            raise DataError(f"{package} holds no dictionary (*{SUFFIX})")
        lines = [json.dumps({"text": piece}) for book in books for piece in _pieces(book)]
    write_atomically(target, "\n".join(lines) + "\n")
    return target


def _pieces(book: Path) -> Iterator[str]:
    """Its text in pieces that begin where a line is not indented."""
    piece: list[str] = []
    size = 0
    with gzip.open(book, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if size >= DOCUMENT and not line.startswith((" ", "\t")):
                yield "".join(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line)
    if piece:
        yield "".join(piece)


def _run(*command: str, place: str) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{command[0]} could not do its part for the experiment's text: {last}")
