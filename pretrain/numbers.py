"""Numbers as people write and read them: on a command line, and on the screen."""

from __future__ import annotations

import argparse
import math
import re

_SIZE = re.compile(r"\s*(?P<number>.*?)\s*(?P<prefix>[kmgt]?)(?P<binary>(?<=[kmgt])i(?=b))?b?\s*", re.I)


def finite(text: str) -> float:
    """``text`` as a number to reckon with, for ``argparse``'s ``type``; ``float`` takes nan and 1e999 too."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, expected one such as 0.5")
    return value


def count(text: str, least: int = 1) -> int:
    """``text`` as a whole number of ``least`` or more, for ``argparse``'s ``type``."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"is '{text}', expected a whole number of {least} or more")
    return value


def byte_size(text: str) -> int:
    """Bytes of ``200M``, ``80GB``, ``40GiB`` or ``1e9``, for ``argparse``'s ``type``; k, M, G, T are powers of 1000."""
    found = _SIZE.fullmatch(text)
    assert found is not None  # any text is a number, good or bad, with nothing behind it
    power = " kmgt".index(found["prefix"].lower() or " ")
    try:
        size = int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power)
    except (ValueError, OverflowError):  # of 1e999
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size in bytes, expected one such as 500k, 2G or 40GiB")
    return size


def short_count(number: float) -> str:
    """``1234567`` -> ``1.23 M``; three digits, with k, M, B (10^9) or T (10^12)."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g} {unit}" if number < 999.5 * scale else f"{number / scale:,.0f} {unit}"
    return f"{number:.3g}"


def magnitude(value: float, unit: str) -> str:
    """``value`` with three digits and a prefix of powers of 1000: ``21.3 GFLOP``."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            return (
                f"{value / scale:.3g} {prefix}{unit}"
                if value < 999.5 * scale
                else f"{value / scale:,.0f} {prefix}{unit}"
            )
    return f"{value:.3g} {unit}"


def so_far(step: int, steps: int) -> str:
    """``12 of 100``; ``12, beyond train.steps 5`` where ``train.steps`` was lowered below what is done."""
    return f"{step:,} of {steps:,}" if step <= steps else f"{step:,}, beyond train.steps {steps:,}"


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``; ``4000`` -> ``1h06m``; ``200000`` -> ``2d07h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d{hours_left:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
