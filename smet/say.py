"""How the library speaks: through the ``smet`` logger, and on stderr where nobody set logging up."""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger("smet")


def say(text: str, level: int = logging.INFO) -> None:
    """Tell the user ``text`` once per job: rank 0 speaks for all."""
    if os.environ.get("RANK", "0") not in ("", "0"):
        return
    if log.hasHandlers():
        log.log(level, text)
    elif log.isEnabledFor(level) or log.level == logging.NOTSET:
        print(text, file=sys.stderr)


def note(text: str) -> None:
    """``say`` what is allowed and probably not meant."""
    say(f"smet: note: {text}", logging.WARNING)
