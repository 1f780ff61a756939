"""Two kinds of DeepSpeed engine behind one small interface: ``train_step`` and ``loss``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.data.loader import FILLER
from pretrain.layout import Layout
from pretrain.model.llama import split_sample


class Engine(Protocol):
    """What the train loop needs of an engine. All methods are collective."""

    deepspeed: Any
    """The DeepSpeed engine."""
    model: nn.Module
    """This rank's part of the LLaMA, under the names of the whole model."""
    fixed_rows: bool
    """Whether every micro-batch must have the same number of rows."""

    def train_step(self, batches: list[Tensor]) -> float:
        """One optimizer step over micro-batches ``(b, s + 1)``; the mean loss over all ranks."""

    def current_loss(self) -> float | None:
        """Mean loss of the step in progress on this rank; None on a rank that does not see it."""

    def loss(self, tokens: Tensor) -> float:
        """Loss of a micro-batch ``(b, s + 1)`` without training, averaged over data-parallel ranks."""


class PlainEngine:
    """Data and tensor parallelism: ZeRO 1, 2 or 3."""

    def __init__(self, engine: Any, model: nn.Module, layout: Layout):
        self.deepspeed, self.model, self.layout = engine, model, layout
        self.fixed_rows = False
        self._total = torch.zeros(())

    def train_step(self, batches: list[Tensor]) -> float:
        """See ``Engine``."""
        self._total = torch.zeros((), device=self.layout.device)
        for tokens in batches:
            loss = self.deepspeed(tokens.to(self.layout.device))
            self._total += loss.detach() / len(batches)
            self.deepspeed.backward(loss)
            self.deepspeed.step()
        return self.layout.mean(self._total)

    def current_loss(self) -> float | None:
        """See ``Engine``."""
        return float(self._total)

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> float:
        """See ``Engine``."""
        self.deepspeed.eval()
        try:
            return self.layout.mean(self.deepspeed(tokens.to(self.layout.device)))
        finally:
            self.deepspeed.train()


class PipelineEngine:
    """Pipeline parallelism with ZeRO-1. Only the first and the last stage look at the tokens."""

    def __init__(self, engine: Any, model: nn.Module, layout: Layout):
        self.deepspeed, self.model, self.layout = engine, model, layout
        self.fixed_rows = True

    def train_step(self, batches: list[Tensor]) -> float:
        """See ``Engine``."""
        return float(self.deepspeed.train_batch(self._samples(batches)))

    def current_loss(self) -> float | None:
        """See ``Engine``: the last stage knows it."""
        total = self.deepspeed.total_loss
        return None if total is None else float(total) / self.deepspeed.micro_batches

    def loss(self, tokens: Tensor) -> float:
        """See ``Engine``."""
        result = self.deepspeed.eval_batch(self._samples([tokens]), num_micro_batches=1)
        self.deepspeed.train()
        return float(result)

    def _samples(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([split_sample(tokens.to(self.layout.device)) for tokens in batches])


def fill_up(tokens: Tensor, rows: int) -> Tensor:
    """``tokens`` ``(b, s + 1)`` with filler rows up to ``rows``: pipelines want batches of one size."""
    filler = torch.full((rows - tokens.shape[0], tokens.shape[1]), FILLER, dtype=tokens.dtype)
    return torch.cat([tokens, filler])
