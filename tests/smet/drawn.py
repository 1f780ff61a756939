"""Masks as layers get them first."""

from __future__ import annotations

import torch
from torch import Tensor

from smet.mask import pack
from smet.topology import random_active


def random_mask(tiles: int, active: int, rng: torch.Generator) -> Tensor:
    """Packed, with exactly ``active`` of ``tiles`` set, uniformly."""
    return pack(random_active(tiles, active, rng))
