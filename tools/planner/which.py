"""Which of the models in configs/ can be trained on a number of GPUs, dense and sparse, and how long it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretrain.config import RunConfig, load_config
from pretrain.errors import ConfigError
from pretrain.numbers import duration, short_count
from pretrain.plan.table import human, in_words
from smet.kernels import sides

from ..packages import CONFIGS
from .budget import Budget, amount, weights_of
from .host import host_seconds
from .machines import Named
from .search import Found, applied, fastest, held, search, share_evenly

TOKENS_PER_WEIGHT = 20
"""What is about best for a dense model of a given cost (Hoffmann et al. 2022, arXiv 2203.15556)."""


@dataclass(frozen=True)
class Answer:
    """One model on these GPUs."""

    size: str
    kind: str
    """``dense``, or the density and the tiles of a sparse one."""
    weights: int
    active: int
    best: Found | None
    """The fastest layout by prediction; None where none fits."""
    why_not: str
    budget: Budget | None
    """Of ``TOKENS_PER_WEIGHT`` tokens per weight."""
    slower: float = 1.0
    """How many times as long it takes where Python is as slow as on the one host that was measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        best, budget = self.best and self.best.to_json(), self.budget and self.budget.to_json()
        return {**vars(self), "fits": self.best is not None, "best": best, "budget": budget}


def model_sizes(configs: Path = CONFIGS) -> list[str]:
    """Names in configs/models, the smallest first."""
    names = [path.stem for path in (configs / "models").glob("*.yaml")]
    return sorted(names, key=lambda name: weights_of(load_config(configs / f"{name}.yaml"))[0])


def runs_of(size: str, overrides: Sequence[str], configs: Path = CONFIGS) -> Iterator[tuple[str, RunConfig]]:
    """The dense and the sparse run of one size; ``overrides`` are put to both, those of sparsity to the sparse one."""
    others = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] != "sparsity"]
    yield "dense", load_config(configs / f"{size}.yaml", [*others, "sparsity.method=dense"])
    sparse = load_config(configs / "tiles" / f"{size}.yaml", overrides)
    rows, cols = sparse.sparsity.block
    yield f"density {sparse.sparsity.density:g}, {rows} x {cols}", sparse


def which(
    gpus: int, named: Named, memory: float, reserve: float, price: float | None, overrides: Sequence[str] = (),
    sizes: Sequence[str] | None = None,
) -> list[Answer]:  # fmt: skip
    """An answer for every size, dense and sparse."""
    found = []
    for size in tqdm(model_sizes() if sizes is None else sizes, desc="sizes", disable=not sys.stderr.isatty()):
        for kind, config in runs_of(size, overrides):
            if named.is_cpu:
                config = replace(config, train=replace(config.train, device="cpu"))
            found.append(_answer(size, kind, config, gpus, named, memory, reserve, price, held(config, overrides)))
    return found


def _answer(
    size: str, kind: str, config: RunConfig, gpus: int, named: Named, memory: float, reserve: float,
    price: float | None, own: Mapping[str, Any],
) -> Answer:  # fmt: skip
    config = share_evenly(config, gpus)
    total, active = weights_of(config)
    try:
        best = fastest(config, gpus, search(config, gpus, memory, named.machine, reserve, False, own))
    except ConfigError as error:
        return Answer(size, kind, total, active, None, str(error), None)
    tokens = config.train.global_batch_size * config.data.seq_length
    long = replace(config, train=replace(config.train, steps=max(1, round(TOKENS_PER_WEIGHT * total / tokens))))
    host = 0.0 if named.is_cpu else host_seconds(applied(config, best), gpus)
    budget = Budget.of(long, gpus, best.time.total, price)
    return Answer(size, kind, total, active, best, "", budget, max(1.0, host / best.time.total))


def table(answers: Sequence[Answer]) -> str:
    """The answers as a Markdown table."""
    priced = any(one.budget and one.budget.price is not None for one in answers)
    heads = ["model", "weights", "as", "fits", "layout", "peak", "tokens / s"]
    heads.append(f"{TOKENS_PER_WEIGHT} tokens / weight take")
    heads += ["GPU hours"] + (["cost"] if priced else [])
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | --- | --- | --- |" + " ---: |" * (len(heads) - 5)]
    for one in answers:
        cells = [one.size, short_count(one.weights), one.kind]
        if one.best is None or one.budget is None:
            cells += ["no", "", *[""] * (len(heads) - 5)]
        else:
            cells += ["yes", layout(one.best), human(one.best.peak), f"{one.best.tokens_per_second:,.0f}"]
            times, budget = sorted({1.0, one.slower}), one.budget
            cells += [" to ".join(duration(time * budget.hours * 3600) for time in times)]
            cells += [" to ".join(amount(time * budget.gpu_hours) for time in times)]
            cells += [" to ".join(amount(time * budget.cost) for time in times)] if budget.cost is not None else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def layout(found: Found) -> str:
    """The layout in a few words: ``ZeRO-2, data 4 x tensor 2, micro-batch 8, checkpointing``."""
    given = found.settings
    degrees = {"data": found.data, "tensor": given["parallel.tensor"], "pipeline": given["parallel.pipeline"]}
    ranks = in_words(degrees)
    again = ", checkpointing" if given["train.activation_checkpointing"] else ""
    return f"ZeRO-{given['parallel.zero_stage']}, {ranks}, micro-batch {given['train.micro_batch_size']}{again}"


HONEST = (
    "All of it is reckoned, nothing was run: bytes to within a few percent (tests hold them to real runs), times as "
    "far as the assumed figures go. The second of two times is that of GPUs that wait for Python, by what it needed "
    "per layer on one host; at density 0.25 in tiles of 128 x 128 a whole step on one H200 took about "
    f"{sides.STEP_OVER_TILES:g} of the dense step's GPU time (docs/performance-gpu.md has both)."
)
