"""Numbers of a command line."""

from __future__ import annotations

import argparse
import math


def finite(text: str) -> float:
    """``text`` as a number to reckon with, for ``argparse``'s ``type``; ``float`` takes nan and 1e999 too."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, expected one such as 0.5")
    return value
