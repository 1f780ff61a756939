"""Files of ours that are published: a reader sees the old one or the whole new one, also after a crash; checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from pretrain import outside

BLOCK = 8 << 20
"""Bytes of a file that are read at once where all of it is looked through."""


def write_atomically(path: Path, text: str) -> None:
    """Publish ``text`` at ``path``: a reader sees the old file or the whole new one.

    What is no file, such as ``/dev/stdout`` or a pipe, is written to: put in its place, a file would take it from
    everybody else on the machine.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            with path.open("w") as device:
                device.write(text)
        except OSError as error:  # writing does not know the name
            raise OSError(error.errno, error.strerror, str(path)) from error
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_synced(temporary, text)
    os.replace(temporary, path)


def write_synced(path: Path, text: str) -> None:
    """Write a file and flush it to disk; a symbolic link in its place is not followed."""
    with outside.open_own(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path, seen: Callable[[int], object] = lambda size: None) -> str:
    """Checksum of a file, read in blocks.

    Args:
        seen: called with the size of each block, for who shows how far it is.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            seen(len(block))
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a directory's entries to disk: what was renamed in it stays so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
