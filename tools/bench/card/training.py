"""Whole training steps through DeepSpeed, SMET's engines and the dense one in turn, and what each holds at its peak."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pretrain.models import fused
from pretrain.plan import plan_rank

from .. import engines, ranks
from ..clock import interleaved
from ..ranks import Rank
from ..spread import quartiles, ratios
from . import profile
from .settings import Setting
from .settings import Side as Kind

DENSE_OPTIMIZER = engines.DENSE_OPTIMIZERS[0]


def measure(setting: Setting) -> dict[str, Any]:
    """Step times, ratios and peaks of every side of ``setting``, in a process of its own."""
    ticks = len(setting.sides) * (1 + setting.rounds)
    found: dict[str, Any] = ranks.run(job, setting, f"{setting.title}, ZeRO-{setting.zero_stage}", ticks)
    return found


def job(rank: Rank) -> dict[str, Any]:
    """What ``measure`` returns. Collective."""
    setting = rank.options
    assert isinstance(setting, Setting)
    begun = time.perf_counter()
    batches = engines.random_batches(setting, rank.layout)
    sides: dict[str, engines.Side] = {}
    peaks: dict[str, Any] = {}
    losses: dict[str, float] = {}
    products: dict[str, Any] = {}
    for kind in setting.sides:
        if kind.plain:
            sides[kind.title], peaks[kind.title] = sides[dataclasses.replace(kind, plain=False).title], None
        else:
            sides[kind.title], peaks[kind.title] = _built(kind, setting, rank, batches)
        losses[kind.title] = _step(sides[kind.title], kind, batches)
        products[kind.title] = sides[kind.title].products
        rank.tick()
    built = time.perf_counter() - begun
    actions: dict[str, Callable[[], Any]] = {
        kind.title: partial(_step, sides[kind.title], kind, batches) for kind in setting.sides
    }
    wall = interleaved(rank.layout, actions, setting.rounds, 2 if setting.device == "cuda" else 1, rank.tick).wall
    dense = next(iter(wall))
    return {
        "title": setting.title, "zero_stage": setting.zero_stage, "dense": dense, "model": setting.shape,
        "tokens": setting.micro_batch * setting.sequence, "build_seconds": built,
        "steps": {name: _times(times, wall[dense]) for name, times in wall.items()},
        "samples": wall, "losses": losses, "peaks": peaks, "products": products,
        "where": {name: profile.shares(action) for name, action in actions.items()},
    }  # fmt: skip


def _step(side: engines.Side, kind: Kind, batches: list[torch.Tensor]) -> float:
    """One step with the formulas of ``kind``; its loss."""
    fused.choose(fused.PLAIN if kind.plain else fused.FUSED)
    try:
        return side.step(batches)
    finally:
        fused.choose(fused.FUSED)


def _times(own: list[float], dense: list[float]) -> dict[str, Any]:
    values = ratios(own, dense)
    return {"seconds": median(own), "ratio": median(values), "quartiles": list(quartiles(values))}


def _built(kind: Kind, setting: Setting, rank: Rank, batches: list[torch.Tensor]) -> tuple[engines.Side, Any]:
    """An engine after its first steps, and its peak bytes on the GPU beside the planned ones."""
    here = dataclasses.replace(setting, block=kind.block or (1, 1), density=kind.density)
    cuda = setting.device == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0
    side: engines.Side
    if kind.block is None:
        side = engines.DenseSide(here, rank.layout, DENSE_OPTIMIZER)
    else:
        side = engines.SparseSide(here, rank.layout, permute=kind.permute)
    side.step(batches)  # kernels are tuned, and DeepSpeed makes its buffers
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(setting.warm_up - 1):
        side.step(batches)
    peak = torch.cuda.max_memory_allocated() - before if cuda else None
    config = here.config(Path("unused"))
    planned = plan_rank(config, 1, dense=kind.block is None).peak
    return side, {"bytes": peak, "planned": planned, "ratio": None if peak is None else peak / planned}
