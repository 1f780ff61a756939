"""Which layouts of a model fit a number of GPUs, the fastest by prediction first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from pretrain.config import RunConfig
from pretrain.config.layouts import candidates, works
from pretrain.config.load import names_given
from pretrain.errors import ConfigError

from .host import host_seconds
from .timing import Machine, StepTime, slowest_stage

RESERVE = 0.1
"""Fraction of a GPU's memory to leave free, unless told."""


@dataclass(frozen=True)
class Found:
    """One layout that fits."""

    settings: dict[str, Any]
    """Overrides that make it, by dotted name."""
    data: int
    peak: int
    """Bytes on the fullest rank at the fullest moment."""
    rest: int
    time: StepTime
    tokens_per_second: float
    """Over all GPUs."""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        return {**vars(self), "time": {**vars(self.time), "total": self.time.total}}


def held(config: RunConfig, given: Iterable[str]) -> dict[str, Any]:
    """What the overrides ``given`` say of the layout of ``config``, by dotted name: a search looks at no other.

    Raises:
        ConfigError: an override is malformed.
    """
    names = names_given(given)
    return {name: value for name, value in overrides(config).items() if name in names}


def variants(config: RunConfig, gpus: int, machine: Machine, held: Mapping[str, Any]) -> Iterator[RunConfig]:
    """Every layout worth pricing: tensor parallelism within a machine, micro-batches of powers of two; of those with
    the settings that are held."""
    micro_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    if "train.micro_batch_size" in held:
        micro_batches = (held["train.micro_batch_size"],)
    for one in _variants(config, gpus, machine, micro_batches):
        settings = overrides(one)
        if all(settings[name] == value for name, value in held.items()):
            yield one


def _variants(config: RunConfig, gpus: int, machine: Machine, micro_batches: tuple[int, ...]) -> Iterator[RunConfig]:
    for parallel in candidates(config.parallel, gpus):
        if parallel.tensor > machine.gpus_per_node:
            continue
        for sequence in (False, True) if parallel.tensor > 1 else (False,):
            layout = replace(parallel, sequence=sequence)
            if not works(config.model, config.data, config.sparsity, layout, gpus):
                continue
            data = gpus // (layout.tensor * layout.pipeline)
            for micro in micro_batches:
                if config.train.global_batch_size % (micro * data):
                    continue
                for again in (False, True):
                    train = replace(config.train, micro_batch_size=micro, activation_checkpointing=again)
                    yield replace(config, parallel=layout, train=train)


def share_evenly(config: RunConfig, gpus: int) -> RunConfig:
    """``config`` with the nearest global batch that ``gpus`` data-parallel ranks can share, where its own is none."""
    batch = config.train.global_batch_size
    if batch % gpus == 0:
        return config
    shared = round(batch / (8 * gpus)) * 8 * gpus  # with room for micro-batches, unless the batch would be another
    if abs(shared - batch) > batch / 10:
        shared = max(1, round(batch / gpus)) * gpus
    return replace(config, train=replace(config.train, global_batch_size=shared))


def search(
    config: RunConfig, gpus: int, memory: float, machine: Machine, reserve: float = RESERVE, thorough: bool = True,
    held: Mapping[str, Any] | None = None,
) -> list[Found]:  # fmt: skip
    """Layouts of ``gpus`` GPUs of ``memory`` bytes whose peak leaves ``reserve`` of it free, fastest first.

    Args:
        thorough: False passes over micro-batches that are smaller than one that fits, where there is no pipeline, which
            would have to wait for more of them: they are slower.
        held: settings that every layout has to have (``held``).

    Raises:
        ConfigError: none fits.
    """
    found = []
    smallest: tuple[int, RunConfig] | None = None
    layouts = list(variants(config, gpus, machine, held or {}))
    passed_over: set[tuple[str, bool]] = set()
    if not thorough:  # the smallest micro-batch first: where it does not fit, no other does
        layouts.sort(key=lambda one: (one.train.micro_batch_size > 1, -one.train.micro_batch_size))
    for candidate in tqdm(layouts, desc="layouts", disable=not thorough or not sys.stderr.isatty()):
        kind = (str(candidate.parallel), candidate.train.activation_checkpointing)
        if kind in passed_over:
            continue
        plans, time = slowest_stage(candidate, gpus, machine, alike=False)
        peak = max(plan.peak for plan in plans)
        if smallest is None or peak < smallest[0]:
            smallest = (peak, candidate)
        fits, alone = peak <= memory * (1 - reserve), candidate.train.micro_batch_size == 1
        if fits:
            data = gpus // (candidate.parallel.tensor * candidate.parallel.pipeline)
            tokens = candidate.train.global_batch_size * candidate.data.seq_length
            rest = max(plan.rest for plan in plans)
            found.append(Found(overrides(candidate), data, peak, rest, time, tokens / time.total))
        if not thorough and fits != alone and (alone or candidate.parallel.pipeline == 1):
            passed_over.add(kind)
    if not found:
        raise ConfigError(_nothing_fits(config, gpus, memory, reserve, smallest, held or {}))
    return sorted(found, key=lambda one: one.time.total)


def fastest(config: RunConfig, gpus: int, found: list[Found]) -> Found:
    """The one that is fastest by the clock, where GPUs may wait for Python (``host_seconds``)."""
    return min(found, key=lambda one: max(one.time.total, host_seconds(applied(config, one), gpus)))


def applied(config: RunConfig, found: Found) -> RunConfig:
    """``config`` in the layout that was found."""
    parts: dict[str, dict[str, Any]] = {"parallel": {}, "train": {}}
    for name, value in found.settings.items():
        section, _, key = name.partition(".")
        parts[section][key] = value
    parallel, train = replace(config.parallel, **parts["parallel"]), replace(config.train, **parts["train"])
    return replace(config, parallel=parallel, train=train)


def overrides(config: RunConfig) -> dict[str, Any]:
    """The settings that make this layout."""
    return {
        "parallel.tensor": config.parallel.tensor,
        "parallel.pipeline": config.parallel.pipeline,
        "parallel.zero_stage": config.parallel.zero_stage,
        "parallel.sequence": config.parallel.sequence,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.activation_checkpointing": config.train.activation_checkpointing,
    }


def _nothing_fits(
    config: RunConfig, gpus: int, memory: float, reserve: float, smallest: tuple[int, RunConfig] | None,
    held: Mapping[str, Any],
) -> str:  # fmt: skip
    asked = f" with {' '.join(f'{name}={str(value).lower()}' for name, value in held.items())}" if held else ""
    if smallest is None:
        return (
            f"no layout of {gpus} GPUs{asked} divides train.global_batch_size {config.train.global_batch_size} and the"
            f" model; choose another number of GPUs{', other settings' if held else ''} or another batch"
        )
    peak, best = smallest
    words = " ".join(f"{name}={value}" for name, value in overrides(best).items())
    return (
        f"no layout of {gpus} GPUs{asked} fits {memory * (1 - reserve) / 1e9:.1f} GB ({memory / 1e9:.0f} GB less a"
        f" reserve of {reserve:.0%}); the smallest takes {peak / 1e9:.1f} GB ({words}); use more GPUs, a shorter"
        " data.seq_length, or a smaller deepspeed.zero_optimization.reduce_bucket_size"
    )
