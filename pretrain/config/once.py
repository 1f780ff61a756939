"""What became of a key, said once however often its file is read."""

from __future__ import annotations

import logging
from functools import lru_cache

from smet.say import say


@lru_cache(maxsize=64)
def note_once(text: str) -> None:
    """Tell the user ``text``, what was changed in the settings and means no harm, the first time alone."""
    say(f"note: {text}", logging.INFO)
