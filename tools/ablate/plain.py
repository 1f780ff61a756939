"""A cell in plain torch: one process without an engine, so that any optimizer can train it, and starts are quick.

What trains sparse models here is ``smet`` itself. No checkpoints are kept: a cell that was stopped begins anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.build import build_optimizer
from pretrain.config import RunConfig
from pretrain.data.corpus import Corpus, open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.data_specs import blend_spec, training_spec
from pretrain.evaluate import evaluate
from pretrain.first_masks import first_masks
from pretrain.layout import Layout
from pretrain.models import family_of
from pretrain.models.init import initialize
from pretrain.parallel.part import Builder
from pretrain.precision import DTYPES, widen_products
from pretrain.products import micro_batch
from pretrain.schedule import learning_rate
from pretrain.startup import choose_device
from pretrain.stopping import REQUEST
from smet import MaskBank, TopologyController, UpdateReport, densify, parameter_groups, sparse_layers
from smet.initial import needs_dense_model
from smet.measured import measure as measure_products
from smet.optim.aged import AgedOptimizer
from smet.store import LocalStore

from . import peers, summary
from .live import bytes_of, layer_flops


def alone(config: RunConfig) -> Layout:
    """One process, on the device that ``train.device`` says.

    Raises:
        LaunchError: it is a GPU, and there is none.
    """
    device = choose_device(config.train.device)
    widen_products(device)
    return Layout(1, 0, 1, 0, device, data_group=None, control=None)


def _nothing() -> None:
    """Where no topology changes."""


@dataclass
class Subject:
    """What is trained, and by what."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bank: MaskBank
    device: torch.device
    before_step: Callable[[], None] = _nothing
    after_step: Callable[[], UpdateReport | None] = _nothing
    density: Callable[[], float] = lambda: 1.0
    """Share of the weights of layers that may be sparse that are trained now."""

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> float:
        """Of token ids ``(b, s + 1)``, as ``Engine.loss``."""
        self.model.eval()
        try:
            return float(self.model.loss(tokens.to(self.device)))  # type: ignore[operator]
        finally:
            self.model.train()


def run(
    config: RunConfig, peer: Mapping[str, Any] | None, layout: Layout | None = None, then_dense: float | None = None
) -> dict[str, Any] | None:
    """Train, judge and measure one cell; None if it was asked to stop before its end.

    Args:
        layout: that of ``alone``, if it is made already.
        then_dense: share of the run after which every weight is trained, see ``filled``.

    Raises:
        UserError: bad data, or settings that cannot be built.
    """
    batch = config.train.global_batch_size
    accumulation = config.accumulation(1)
    layout = layout or alone(config)
    subject = build(config, peer, layout)
    loader = BatchLoader(_training(config), config.train.micro_batch_size, accumulation, 0, 1)
    dense_from = config.train.steps if then_dense is None else round(then_dense * config.train.steps)
    losses: list[float] = []
    densities: list[float] = []
    costs: dict[int, dict[str, int]] = {0: layer_flops(subject.model, config.sparsity)}
    reports: list[UpdateReport] = []
    held: dict[str, int] = {}
    begin, spent = time.perf_counter(), time.process_time()
    try:
        for step in range(config.train.steps):
            if REQUEST.why():
                return None
            if step == dense_from:
                subject = filled(subject, config)
                costs[step] = layer_flops(subject.model, config.sparsity)
            densities.append(subject.density())
            peers.set_rate(subject.optimizer, learning_rate(step, config.optimizer, config.train.steps))
            losses.append(_gradients(subject, loader.batches(step * batch), config.optimizer.gradient_clipping))
            if not math.isfinite(losses[-1]):
                break
            if step in (1, dense_from + 1):  # with the gradients, and the state that the first step has made
                held = bytes_of(subject.model, subject.optimizer, subject.bank)
            subject.optimizer.step()
            report = subject.after_step()
            if report is not None:
                reports.append(report)
    finally:
        loader.close()
    seconds = {"train_seconds": time.perf_counter() - begin, "train_cpu_seconds": time.process_time() - spent}
    return {
        **_judged(subject, config, losses, layout), **{key: round(value, 2) for key, value in seconds.items()},
        "bytes": held, **_mean_cost(costs, len(losses)), **summary.topology([vars(r) for r in reports]),
        "moved": sum(report.grown for report in reports), "updates": [], "changes": [],
        "mean_density": round(fmean(densities), 5),
    }  # fmt: skip


def _training(config: RunConfig) -> Corpus:
    return open_corpus(training_spec(config.data), config.data.seq_length, config.data.seed)


def build(config: RunConfig, peer: Mapping[str, Any] | None = None, layout: Layout | None = None) -> Subject:
    """Model and optimizer: a peer's, or ``smet``'s, over the dense model or the sparse one.

    Raises:
        UserError: see ``run``.
    """
    dtype, layout = DTYPES[config.train.precision], layout or alone(config)
    if config.sparsity.method != "dense":
        return _sparse(config, dtype, layout, peer)
    model = family_of(config.model).model.Model(config.model)
    initialize(model, config.model, seed=config.train.seed)
    model.to(layout.device, dtype)
    optimizer = peers.optimizer_of(model, peer, config) if peer else _own(model, config)
    return Subject(model, optimizer, MaskBank(model, None), layout.device)


def _sparse(config: RunConfig, dtype: torch.dtype, layout: Layout, peer: Mapping[str, Any] | None) -> Subject:
    first = first_masks(config, layout, _training(config)) if needs_dense_model(config.sparsity) else None
    model = Builder(config, layout, first=first).whole().to(layout.device, dtype)
    if peer:  # masks stay, so that nobody has to know which weights are new
        measure_products(sparse_layers(model).values(), *micro_batch(config), lambda value: [value], True)
        return Subject(model, peers.optimizer_of(model, peer, config), MaskBank(model, None), layout.device,
                       density=lambda: config.sparsity.density)  # fmt: skip
    optimizer, bank = _own(model, config), MaskBank(model, None)
    topology = TopologyController(model, config.sparsity, LocalStore(optimizer, None), bank, config.train.steps)
    measure_products(topology.all_layers.values(), *micro_batch(config), lambda value: [value], True)
    return Subject(
        model, optimizer, bank, layout.device, topology.before_step, topology.after_step, lambda: topology.density
    )


def filled(subject: Subject, config: RunConfig) -> Subject:
    """The same model dense from here on: weights that were not active begin at 0, and all of them with a new optimizer.

    Sparse pre-training and what is dense after it: Thangarasa et al. 2023, arXiv 2303.10464.
    """
    for name, layer in sparse_layers(subject.model).items():
        parent, _, own = name.rpartition(".")
        setattr(subject.model.get_submodule(parent), own, densify(layer))
    return Subject(subject.model, _own(subject.model, config), MaskBank(subject.model, None), subject.device)


def _own(model: nn.Module, config: RunConfig) -> AgedOptimizer:
    groups = parameter_groups(model, config.sparsity, config.optimizer.weight_decay)
    return build_optimizer(groups, config, external_clock=False)


def _mean_cost(costs: Mapping[int, Mapping[str, int]], steps: int) -> dict[str, int]:
    """Over ``steps`` steps, of what each costs from a step on."""
    ends = [*list(costs)[1:], steps]
    spans = [(end - start) / steps for start, end in zip(costs, ends, strict=True)]
    return {key: round(sum(span * cost[key] for span, cost in zip(spans, costs.values(), strict=True)))
            for key in costs[0]}  # fmt: skip


def _gradients(subject: Subject, batches: list[Tensor], clipping: float) -> float:
    """Gradients of one step, clipped; the loss."""
    subject.optimizer.zero_grad()
    subject.before_step()
    total = 0.0
    for tokens in batches:
        loss: Tensor = subject.model.loss(tokens.to(subject.device)) / len(batches)  # type: ignore[operator]
        loss.backward()
        total += float(loss.detach())
    if clipping:
        torch.nn.utils.clip_grad_norm_(subject.model.parameters(), clipping)
    return total


def _judged(subject: Subject, config: RunConfig, losses: list[float], layout: Layout) -> dict[str, Any]:
    """Losses as ``summary`` has them, the validation loss measured now."""
    found = None
    if math.isfinite(losses[-1]) and config.data.validation:
        corpus = open_corpus(blend_spec(config.data.validation), config.data.seq_length, config.data.seed)
        loader = BatchLoader(corpus, config.train.micro_batch_size, 1, 0, 1)
        try:
            found = evaluate(subject, loader, config.evaluation.samples, layout)["validation_loss"]  # type: ignore[arg-type]
        finally:
            loader.close()
    return {
        **summary.training_losses([{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]),
        "tokens": len(losses) * config.train.global_batch_size * config.data.seq_length,
        "validation_loss": summary.number(found),
    }
