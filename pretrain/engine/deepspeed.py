"""Two kinds of DeepSpeed engine: of a whole model, and of one pipeline stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.base import Engine
from pretrain.engine.parts import Around, around_parts
from pretrain.layout import Layout
from pretrain.models.functions import IGNORED
from pretrain.models.parts import split_sample
from pretrain.parallel.collectives import gather_vocabulary
from smet.zero import ZeroStore


class DeepSpeedEngine(Engine):
    """What both have in common.

    Args:
        deepspeed: the ``deepspeed.initialize``d engine.
        model: see ``Engine``.
        layout: see ``Engine``.
        store: of another client optimizer than ``SmetAdamW``; None = a ``ZeroStore``.
    """

    store: ZeroStore

    def __init__(self, deepspeed: Any, model: nn.Module, layout: Layout, store: ZeroStore | None = None):
        super().__init__(model, layout, store or ZeroStore(deepspeed))
        self._deepspeed = deepspeed

    def gradient_norm(self) -> float:
        """See ``Engine``."""
        return self.store.gradient_norm()

    def before_update(self, action: Callable[[], None]) -> Callable[[], None]:
        """See ``Engine``."""
        return self.store.before_each_step(action)

    def veto(self, skip: Callable[[float], bool]) -> None:
        """See ``Engine``."""
        self.store.decide_each_step(skip)

    def collective_facts(self) -> dict[str, list[str]]:
        """See ``Engine``."""
        return self.store.collective_facts()

    @property
    def kept_whole(self) -> int:
        """See ``Engine``."""
        section = self._deepspeed.config.get("zero_optimization", {})
        return int(section.get("stage3_param_persistence_threshold", 0))

    def clocked(self, around: Around) -> AbstractContextManager[None]:
        """See ``Engine``."""
        return around_parts(self._deepspeed, around)

    def _whole(self, logits: Tensor) -> Tensor:
        """Logits of the whole vocabulary, of this rank's share of it."""
        whole = logits if self.layout.tensor_size == 1 else gather_vocabulary(logits, self.layout.tensor_group)
        return whole.float()


class PlainEngine(DeepSpeedEngine):
    """Data and tensor parallelism: ZeRO 1, 2 or 3."""

    fixed_rows = False

    def __init__(self, deepspeed: Any, model: nn.Module, layout: Layout, store: ZeroStore | None = None):
        super().__init__(deepspeed, model, layout, store)
        self._total = torch.zeros(())

    def train_step(self, batches: list[Tensor]) -> float:
        """See ``Engine``."""
        self._total = torch.zeros((), device=self.layout.device)
        for tokens in batches:
            loss = self._deepspeed(tokens.to(self.layout.device))
            self._total += loss.detach() / len(batches)
            self._deepspeed.backward(loss)
            self._deepspeed.step()
        return self.layout.mean(self._total)

    def current_loss(self) -> float | None:
        """See ``Engine``."""
        return float(self._total)

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> float:
        """See ``Engine``."""
        self._deepspeed.eval()
        try:
            return self.layout.mean(self._deepspeed(tokens.to(self.layout.device)))
        finally:
            self._deepspeed.train()

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, last: Tensor) -> Tensor:
        """See ``Engine``."""
        self._deepspeed.eval()
        try:
            return self._whole(self._deepspeed(tokens.to(self.layout.device), last.to(self.layout.device)))
        finally:
            self._deepspeed.train()


class PipelineEngine(DeepSpeedEngine):
    """Pipeline parallelism with ZeRO-1. Only the first and the last stage look at the tokens."""

    fixed_rows = True

    def train_step(self, batches: list[Tensor]) -> float:
        """See ``Engine``."""
        return float(self._deepspeed.train_batch(self._samples(batches)))

    def current_loss(self) -> float | None:
        """See ``Engine``: the last stage knows it."""
        total = self._deepspeed.total_loss
        return None if total is None else float(total) / self._deepspeed.micro_batches

    def loss(self, tokens: Tensor) -> float:
        """See ``Engine``."""
        result = self._deepspeed.eval_batch(self._samples([tokens]), num_micro_batches=1)
        self._deepspeed.train()
        return float(result)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, last: Tensor) -> Tensor | None:
        """See ``Engine``: the ranks of the last stage see them."""
        inputs = tokens.to(self.layout.device)
        batch = iter([(inputs, torch.full_like(inputs, IGNORED))])
        _, logits = self._deepspeed.eval_batch(batch, return_logits=True, num_micro_batches=1)
        self._deepspeed.train()
        if logits is None:
            return None
        return self._whole(logits[torch.arange(len(last)), last.to(logits.device)])

    def _samples(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([split_sample(tokens.to(self.layout.device)) for tokens in batches])
