"""A rank's plan as a Markdown table, the same layout with dense AdamW beside it."""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.config import RunConfig
from pretrain.plan.cut import describe
from pretrain.plan.rank import RankPlan


def human(size: float) -> str:
    """Bytes in decimal units with three digits, such as ``1.23 GB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 999.5 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size:.0f} B"


def in_words(degrees: Mapping[str, int]) -> str:
    """Ranks of each kind, such as ``data 4 x tensor 2``: those of data always, others where there are several."""
    return " x ".join(f"{name} {size}" for name, size in degrees.items() if size > 1 or name == "data")


def layout_line(config: RunConfig, world_size: int) -> str:
    """The layout and the batch in words."""
    parallel, train, sparsity = config.parallel, config.train, config.sparsity
    falling = f"density {sparsity.first_density:g} to {sparsity.density:g} in storage of its first size"
    data = world_size // (parallel.tensor * parallel.pipeline)
    extras = [
        *([describe(config)] if parallel.pipeline > 1 else []),
        *(["sequence parallel"] if parallel.sequence else []),
        *(["activation checkpointing"] if train.activation_checkpointing else []),
        *([falling] if sparsity.falls else []),
    ]
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    return (
        f"{ranks} = data {data} x tensor {parallel.tensor} x pipeline {parallel.pipeline}, ZeRO-"
        f"{parallel.zero_stage}, {train.micro_batch_size} x {config.accumulation(data)} x {data} sequences of "
        f"{config.data.seq_length} tokens per step, {train.precision}{''.join(', ' + extra for extra in extras)}"
    )


def table(sparse: RankPlan, dense: RankPlan) -> str:
    """All figures of one rank; ``dense`` is the plan of the same layout with every weight stored."""
    rows: list[tuple[str, str, str, str]] = []
    for kind in sparse.kinds:
        where = "in host memory" if kind in sparse.in_host_memory else "at rest"
        rows.append(_row(f"{kind} {where}", dense.kinds[kind], sparse.kinds[kind]))
    rows.append(_row("**all at rest**", dense.rest, sparse.rest))
    if sparse.host:
        rows.append(_row("**all in host memory**", dense.host, sparse.host))
    if sparse.before_training:
        rows.append(
            _row("before training, on rank 0's host: the dense model for first masks", 0, sparse.before_training)
        )
    for name, size in sparse.activation_choices.items():
        rows.append(_row(f"activations of a micro-batch, {name}", dense.activation_choices[name], size))
    in_flight = f"activations as set, micro-batches in flight: {sparse.in_flight}"
    rows.append(_row(in_flight, *(plan.in_flight * plan.activations.layers for plan in (dense, sparse))))
    rows += _all_of("transient", dense.transients, sparse.transients)
    rows.append(_row("**peak**", dense.peak, sparse.peak))
    if sparse.peak_between_updates != sparse.peak:
        between = (plan.peak_between_updates for plan in (dense, sparse))
        rows.append(_row("peak of steps without a topology update", *between))
    rows += _all_of("sent per step", dense.sent, sparse.sent)
    rows.append(_row("**all sent per step**", sum(dense.sent.values()), sum(sparse.sent.values())))
    rows.append(_row("sent per topology update", dense.sent_per_update, sparse.sent_per_update))
    for name in ("model", "hardware"):
        whole, own = getattr(dense.flops, name), getattr(sparse.flops, name)
        share = f"{own / whole:.3g}"
        rows.append((f"{name} PFLOPs per step", f"{whole / 1e15:.3g}", f"{own / 1e15:.3g}", share))
    lines = ["| per rank | dense AdamW | this run | ratio |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _all_of(what: str, dense: Mapping[str, int], sparse: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    names = [name for name in {**sparse, **dense} if sparse.get(name) or dense.get(name)]
    return [_row(f"{what}: {name}", dense.get(name, 0), sparse.get(name, 0)) for name in names]


def _row(name: str, dense: int, sparse: int) -> tuple[str, str, str, str]:
    return name, human(dense), human(sparse), f"{sparse / dense:.3g}" if dense else "-"
