"""What ``torch.compile`` is to leave as it is. Importing this takes a second, so only who is being traced does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """``function(*arguments, **options)`` as if nobody traced: one break of the graph, without a word."""
    return function(*arguments, **options)
