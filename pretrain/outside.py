"""Files and texts that others may have written: read within bounds, never run, never followed elsewhere.

What is trusted and what is not is in docs/security.md.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MEGABYTE = 1 << 20


@contextmanager
def reading(path: Path, limit: int | None = None) -> Iterator[BinaryIO]:
    """A regular file of at most ``limit`` bytes, open for reading; None = of any size.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe or device, which could keep its reader for ever.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(number).st_mode):  # open() would name it by its number, and leave that open
        os.close(number)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(number, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if limit is not None and status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, expected at most {limit:,}", str(path))
        yield file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as ``reading``.
    """
    with reading(path, limit) as file:
        return file.read(limit)


def parse_json(text: str | bytes) -> Any:
    """The value that JSON ``text`` stands for.

    Raises:
        ValueError: it is no JSON, or nested deeper than anything that is meant.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


def read_json(path: Path, limit: int = 64 * MEGABYTE) -> Any:
    """The value in a JSON file of at most ``limit`` bytes.

    Raises:
        OSError: as ``read_bytes``.
        ValueError: as ``parse_json``.
    """
    return parse_json(read_bytes(path, limit))


def is_no_text(text: str) -> bool:
    """Whether there are half characters in it, as which Python keeps bytes that are no UTF-8, and YAML any escape."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """``text`` without what a terminal would obey: control characters other than line ends and tabs are spelled out.

    So are characters that change the direction of writing, which make a line look like another one.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_own(path: Path, mode: str) -> Any:
    """Open a UTF-8 text file of ours for writing (``w``, ``a``); a symbolic link in its place is not followed.

    Raises:
        OSError: it cannot be opened, or is a link, which somebody may have planted to have another file overwritten.
    """
    # Without O_NONBLOCK, a pipe in its place would keep us until somebody reads from it.
    return open(path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | _SAFELY, 0o666))


_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def delete(path: Path) -> None:
    """Delete a file, a folder with all in it, or a symbolic link (never what it points to); nothing there is fine.

    Raises:
        OSError: something cannot be deleted.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
