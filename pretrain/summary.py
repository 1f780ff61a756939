"""The first lines of a run: what trains, how, on what, for how long, and what its speed is compared with."""

from __future__ import annotations

import torch

from pretrain.advice import poor
from pretrain.config import RunConfig
from pretrain.config.names import in_run_file
from pretrain.config.passed_on import sent_in, summed_in
from pretrain.data.epochs import as_epochs, of_validation, too_many
from pretrain.engine.log import EngineLog
from pretrain.formula import formula_of
from pretrain.plan import cut
from pretrain.plan.table import in_words
from pretrain.precision import DTYPES, are_widened
from pretrain.products import degrees, micro_batch
from pretrain.trainer import Trainer
from smet import compute, kernels
from smet.starved import empty, starved

INDENT = 11
"""Characters that the names of lines take."""
SHORT = {kind: name for name, kind in DTYPES.items()}
"""Types by the words of run files."""


def _sparse_weights(trainer: Trainer) -> tuple[int, int]:
    """Active and all weights of this rank's sparse layers, 0 where another data-parallel rank counts them."""
    layers = trainer.topology.all_layers.values() if trainer.layout.is_first_replica else ()
    return sum(la.active * la.grid.tile_size for la in layers), sum(la.grid.rows * la.grid.cols for la in layers)


def _starved(trainer: Trainer) -> list[str]:
    """A line about rows and columns of tiles without any active one, over all tensor-parallel ranks. Collective."""
    bank, layout = trainer.bank, trainer.layout
    layers = trainer.topology.all_layers
    own = {name: empty(bank.bits(la), la.grid) for name, la in layers.items()
           if la.grid.tile_size > 1 and not la.is_full}  # fmt: skip
    bank.release()
    found = layout.gather_objects(own if layout.is_first_replica else {})
    return [f"warning: {in_run_file(line)}" for line in starved(found)]


def first_lines(trainer: Trainer, log: EngineLog, remarks: list[str]) -> list[str]:
    """What a run says before its first step: ``remarks``, warnings, and what trains. Collective."""
    counts = trainer.layout.gather_objects(_sparse_weights(trainer))
    starved = _starved(trainer)
    long = too_many(trainer.loader.corpus, trainer.total_steps, trainer.config.train.global_batch_size)
    validation = next((one for one in trainer.corpora if one is not trainer.loader.corpus), None)
    held_out = of_validation(trainer.loader.corpus, validation, trainer.config.evaluation.samples)
    said = [*remarks, *starved, *long, *held_out, *poor(trainer.config)]
    return [*said, *_summary(trainer, counts, log)] if trainer.layout.is_main else []


def _summary(trainer: Trainer, counts: list[tuple[int, int]], log: EngineLog) -> list[str]:
    """The lines.

    Args:
        counts: what ``_sparse_weights`` is on each rank.
        log: of this rank.
    """
    config, layout = trainer.config, trainer.layout
    weights, total = (sum(numbers) for numbers in zip(*counts, strict=True))
    rows, cols = config.sparsity.block
    permuted = f", permuted {config.sparsity.permute}" if config.sparsity.is_permuted else ""
    ranks = in_words(degrees(layout))
    stages = f", {cut.describe(config)}" if layout.stages > 1 else ""
    formula = trainer.store.optimizer.formula.name
    optimizer = "SmetAdamW" if formula == "adamw" else formula
    products = compute.describe(trainer.topology.all_layers.values(), *micro_batch(config))
    micro, accumulation = config.train.micro_batch_size, config.accumulation(layout.dp_size)
    samples = trainer.total_steps * config.train.global_batch_size
    return [
        f"SMET: {weights:,} of {total:,} sparse-layer weights {_density(trainer, weights / total)}, block {rows}x{cols}"
        f"{permuted})",
        _line("training", f"{optimizer} in ZeRO-{config.parallel.zero_stage}, {ranks} on {layout.device.type}{stages}"),
        _line("numbers", numbers(config)),
        _line("compute", f"products by {products}; {kernels.describe(layout.device.type)}"),
        _line(
            "step",
            f"{micro} x {accumulation} x {layout.dp_size} sequences of {config.data.seq_length} tokens = "
            f"{trainer.tokens_per_step:,} tokens",
        ),
        _line("run", f"{trainer.total_steps:,} steps = {as_epochs(trainer.loader.corpus, samples)}"),
        *([_line("speed", trainer.yardstick.describe())] if trainer.yardstick else []),
        _line("log", log.describe()),
    ]


def numbers(config: RunConfig) -> str:
    """In which numbers a run computes and what it keeps."""
    precision = config.train.precision
    summed, sent = summed_in(config.deepspeed, precision), sent_in(config.deepspeed, precision)
    over = f" over micro-batches and in {sent} over ranks" if sent != summed else ""
    gradients = " and gradients" if summed == sent == precision else f", gradients summed in {summed}{over}"
    wide = precision == "bf16" and are_widened()
    products = "; products in fp32 and rounded, as this processor has none of bf16" if wide else ""
    return f"{precision} weights{gradients}, {_kept(config)}{products}"


def _kept(config: RunConfig) -> str:
    """In which numbers the optimizer keeps what it has of each weight, by what its formula declares."""
    kinds = {one.dtype or torch.float32 for one in formula_of(config).state}
    if not kinds - {torch.float32}:
        return "fp32 master and moments" if kinds else "fp32 master"
    words = sorted(SHORT.get(kind, str(kind).removeprefix("torch.")) for kind in kinds)
    return f"fp32 master, moments in {' and '.join(words)}"


def _line(name: str, text: str) -> str:
    return f"  {name:{INDENT}}{text}"


def _density(trainer: Trainer, stored: float) -> str:
    """How dense the sparse layers are."""
    sparsity = trainer.config.sparsity
    if not sparsity.falls:
        return f"active (density {stored:.4g}"
    return (
        f"stored (density {stored:.4g}, of which {trainer.topology.density:.4g} is open and {sparsity.density:g} will"
        " be left; storage keeps its first size"
    )
