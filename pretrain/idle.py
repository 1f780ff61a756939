"""Settings outside the section ``sparsity`` that were given and decide nothing beside the others; those within it are
``smet.notices``' to tell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pretrain.config import RunConfig
from pretrain.config.names import idle_in_run_file


def idle(config: RunConfig) -> list[str]:
    """All of them, a line for each reason. What is given as it would be anyway is not told."""
    found = idle_in_run_file(config.sparsity)
    for section, names, reason in _idle(config):
        given = [f"{section}.{name}" for name in _given(getattr(config, section)) if name in names]
        if given:
            found.append(f"{', '.join(given)} decide{'s' if len(given) == 1 else ''} nothing: {reason}")
    return [*found, *_kept_less_often(config), *_served_by_none(config)]


def _given(section: Any) -> list[str]:
    return [part.name for part in fields(section) if getattr(section, part.name) != part.default]


def _idle(config: RunConfig) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(section, settings that decide nothing, why), whoever gave them."""
    schedule = config.optimizer.schedule
    if schedule != "wsd":
        yield "optimizer", ("decay_fraction",), f"optimizer.schedule is {schedule}, and only wsd reads it"
    if schedule == "constant":
        yield "optimizer", ("min_lr_ratio",), "optimizer.schedule constant never falls"
    if not config.data.reset_attention:
        yield "data", ("eos_id",), "data.reset_attention is false, and documents see each other"
    if not config.evaluation.prompts:
        names = tuple(name for name in vars(config.evaluation) if name.startswith("prompts_"))
        yield "evaluation", names, "there are no evaluation.prompts"
    if not config.data.validation:
        yield "evaluation", ("samples",), "there is no data.validation"
    if not config.guard.enabled:
        names = ("loss_deviations", "norm_deviations")  # the others are of gradients that are not finite, too
        yield "guard", names, "guard.enabled is false, and spikes are left in"
    if config.checkpoint.keep_last == 0:
        yield "checkpoint", ("keep_every",), "checkpoint.keep_last is 0, and all are kept"


def _kept_less_often(config: RunConfig) -> Iterator[str]:
    interval, every = config.checkpoint.interval, config.checkpoint.keep_every
    if interval and every and every % interval and config.checkpoint.keep_last:
        yield (
            f"checkpoint.keep_every is {every}, no multiple of checkpoint.interval {interval}: only checkpoints at"
            f" multiples of {math.lcm(interval, every)} are kept for good"
        )


def _served_by_none(config: RunConfig) -> Iterator[str]:
    from smet.compute.tiles import SMALLEST  # torch comes along

    rows, cols = config.sparsity.block
    if config.sparsity.compute == "tiles" and min(rows, cols) < SMALLEST:
        yield (
            f"sparsity.compute 'tiles' multiplies tiles from {SMALLEST} x {SMALLEST} on: of {rows} x {cols} all"
            " products are dense"
        )
