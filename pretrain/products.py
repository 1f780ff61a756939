"""Who multiplies in a run: measured at its start, recorded in its checkpoints, taken from there where that holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.folder import read_manifest
from pretrain.config import RunConfig
from pretrain.layout import Layout
from pretrain.precision import DTYPES
from pretrain.trainer import Trainer
from smet.measured import Choices, measure


def choose_products(trainer: Trainer, checkpoint: Path | None) -> list[str]:
    """Let the faster backend multiply in each sparse layer; all ranks do the same. Collective.

    A choice that ``checkpoint`` records is kept on the same kind of machine in the same layout, so that a run which
    goes on has the bits of one that never stopped.

    Returns:
        Lines for the screen.
    """
    layout = trainer.layout
    recorded = layout.agree(lambda: _recorded(checkpoint) if layout.is_main else {})
    before: Mapping[str, str] = recorded.get("chosen", {})
    why: list[str] = []

    def known(machine: str) -> Mapping[str, str]:
        changed = [
            name
            for name, was, now in (
                ("machine", recorded.get("machine"), machine),
                ("layout", recorded.get("layout"), degrees(layout)),
            )
            if was != now
        ]
        why[:] = changed
        return {} if changed else before

    layers = trainer.topology.all_layers.values()
    found = measure(layers, *micro_batch(trainer.config), layout.gather_objects, layout.is_main, known)
    if found.chosen:
        trainer.products = {"machine": found.machine, "layout": degrees(layout), "chosen": found.chosen}
    lines = found.describe()
    if before and found.seconds:
        lines.append(_changed(found, before, why))
    return lines


def _changed(found: Choices, before: Mapping[str, str], why: list[str]) -> str:
    reason = f"another {' and another '.join(why)}" if why else "other shapes"
    return (
        f"products were measured again ({reason} than in the checkpoint): {found.changes(before)} of "
        f"{len(found.chosen)} shapes are multiplied by another backend than before, or were not there"
    )


def micro_batch(config: RunConfig) -> tuple[int, torch.dtype]:
    """Tokens of a micro-batch, and the type in which they are multiplied."""
    tokens = config.train.micro_batch_size * config.data.seq_length
    return tokens, DTYPES[config.train.precision]


def degrees(layout: Layout) -> dict[str, int]:
    """Ranks of each kind."""
    return {"data": layout.dp_size, "tensor": layout.tensor_size, "pipeline": layout.stages}


def _recorded(checkpoint: Path | None) -> dict[str, Any]:
    """What the manifest says of products; nothing where an earlier version wrote it."""
    found = read_manifest(checkpoint).get("products") if checkpoint is not None else None
    return dict(found or {})
