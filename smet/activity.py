"""What SMET is doing at this moment, for those who count what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TOPOLOGY = "topology"
"""A topology update, and sums of dense gradients to grow by."""

_doing: ContextVar[str] = ContextVar("smet_doing", default="")


def doing() -> str:
    """The activity that the code that runs now belongs to; empty where it is none of these."""
    return _doing.get()


@contextmanager
def during(activity: str) -> Iterator[None]:
    """What runs inside, or in a function that this decorates, belongs to ``activity``."""
    token = _doing.set(activity)
    try:
        yield
    finally:
        _doing.reset(token)
