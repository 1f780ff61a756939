"""What was loaded has to fit together before anything computes with it.

Lengths alone do not tell: a mask with more active tiles than there are values would have kernels read beyond them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.checkpoint.vectors import Vectors
from pretrain.errors import CheckpointError
from pretrain.layout import Layout
from smet.bank import MaskBank
from smet.linear import sparse_layers
from smet.mask import count_active, has_spare_bits
from smet.optim.ages import CLOSED

_NO_COUNT = 1 << 40
"""Added to the count of a mask with bits beyond its last tile, so that it fits nothing."""


def require_sound(
    model: nn.Module, bank: MaskBank, vectors: Vectors, state: dict[str, Any], layout: Layout, path: Path
) -> None:
    """Check masks against values, and birth codes against the table of births. Collective.

    Args:
        vectors: the live fragments, filled from the checkpoint at ``path``.
        state: its small state.

    Raises:
        CheckpointError: they do not fit; raised on every rank.
    """
    births = list(state["topology"]["ages"]["births"])
    if any(layer.falls for layer in sparse_layers(model).values()) and births[CLOSED] is None:
        births[CLOSED] = 0  # of tiles that are stored and closed
    wrong = _masks(model, bank, layout) + _births(vectors, births)
    layout.agree(lambda: _require_none(wrong, path))


def _masks(model: nn.Module, bank: MaskBank, layout: Layout) -> list[str]:
    layers = {name: layer for name, layer in sparse_layers(model).items() if not layer.is_full}
    counts = torch.zeros(len(layers), dtype=torch.int64, device=layout.device)
    for number, layer in enumerate(layers.values()):
        first, bits = bank.fragment(layer)
        counts[number] = count_active(bits)
        if first + bits.numel() == layer.grid.mask_bytes and has_spare_bits(bits, layer.grid.tiles):
            counts[number] += _NO_COUNT
    if layout.group is not None:
        dist.all_reduce(counts, group=layout.group)
    return [
        f"{name}.mask does not have the {layer.active} active tiles that there are values for"
        for (name, layer), count in zip(layers.items(), counts.tolist(), strict=True)
        if count != layer.active
    ]


def _births(vectors: Vectors, births: list[int | None]) -> list[str]:
    wrong = []
    for name, vector in vectors.items():
        if name.endswith("/birth"):
            counts = torch.bincount(vector.local.cpu().flatten(), minlength=len(births)).tolist()
            unknown = [code for code, count in enumerate(counts) if count and births[code] is None]
            wrong += [f"{name} has birth code {code}, which state.json does not know" for code in unknown[:1]]
    return wrong


def _require_none(wrong: list[str], path: Path) -> None:
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} contradicts itself: {wrong[0]} ({len(wrong)} contradictions); take another checkpoint"
        )
