"""Progress on stderr: a bar in a terminal; a line every half minute in the log of a batch job."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0


def progress(name: str, **options: Any) -> tqdm:
    """A ``tqdm`` bar; see there for the options."""
    if not sys.stderr.isatty():
        options |= {"mininterval": LOG_SECONDS, "delay": LOG_SECONDS}
    bar: tqdm = tqdm(desc=name, file=sys.stderr, **options)
    return bar
