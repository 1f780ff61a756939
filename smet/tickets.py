"""What operators are given in the place of a layer: a number that stands for it.

Operators take tensors and numbers. A number that is a tensor is data to whoever traces, so that what was traced for one
layer serves others, and is not traced anew for each.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from smet.errors import ConfigError

_holders: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count(secrets.randbits(62))
"""Begun anywhere: a program that was traced in another process finds nothing, and not another layer."""


def ticket_for(holder: Any) -> Tensor:
    """A new number that stands for ``holder`` as long as that lives: int64 ``()``, on the CPU."""
    number = next(_numbers)
    _holders[number] = holder
    with torch.inference_mode(False):
        return torch.tensor(number, dtype=torch.int64, device="cpu")


def holder_of(ticket: Tensor) -> Any:
    """Whom ``ticket`` stands for.

    Raises:
        ConfigError: nobody of this process.
    """
    holder = _holders.get(int(ticket))
    if holder is None:
        raise ConfigError(
            "a traced program asks for a sparse layer that is not in this process, or is gone; trace the model where it"
            " runs (torch.compile), or export the dense one (smet.densify)"
        )
    return holder
