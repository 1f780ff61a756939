"""What a topology update needs to know of birth codes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smet.config import SmetConfig
from smet.optim.ages import AgeTable
from smet.store import Fragment


class Codes(NamedTuple):
    """Birth codes at one update."""

    code: int
    """Of what is grown now."""
    recode: dict[int, int]
    """Codes whose weights get another one first."""
    young: list[int]
    """Of what ``protect_rounds`` protects."""
    ages: Tensor
    """``(256,)`` fp32: optimizer steps since the tiles of each code were grown."""


def open_codes(ages: AgeTable, step: int, config: SmetConfig) -> Codes:
    """Give a code to what is grown after ``step``; what is said of the others is said of them before that."""
    births = ages.births
    young: list[int] = []
    if config.protect_rounds:
        horizon = step - config.protect_rounds * config.update_interval
        young = [code for code, birth in enumerate(births) if code and birth is not None and birth >= horizon]
    since = torch.tensor([math.inf, *(math.nan if born is None else step - born for born in births[1:])])
    return Codes(*ages.open(step), young, since)


def recode(fragment: Fragment, codes: dict[int, int]) -> None:
    """Give the weights of each old birth code its new one (see ``AgeTable.open``)."""
    for old, new in codes.items():
        fragment.state["birth"][fragment.state["birth"] == old] = new
