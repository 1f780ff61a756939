"""A folder that one process at a time works in."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from pretrain.errors import DataError


def claim(path: Path, busy: str) -> IO[str]:
    """Hold the lock file ``path`` until the returned file is closed or this process ends.

    A file system without locks claims nothing.

    Raises:
        DataError: another process holds it; ``busy`` is what is said then.
    """
    lock = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DataError(busy) from None
    except OSError:
        pass
    return lock
