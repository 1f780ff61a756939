"""What the train loop, its callbacks, checkpoints and the topology need of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pretrain.data.loader import FILLER
from pretrain.engine.parts import Around
from pretrain.engine.traffic import TrafficCounter
from pretrain.layout import Layout
from smet.store import ParameterStore


class Engine(ABC):
    """A model that can be stepped, measured and asked. Methods are collective where they say so.

    Args:
        model: this rank's part of the model, under the names of the whole one.
        layout: this rank's place.
        store: where this rank's master weights and optimizer state are.
    """

    fixed_rows: bool
    """Whether every micro-batch must have the same number of rows, and of tokens."""

    def __init__(self, model: nn.Module, layout: Layout, store: ParameterStore):
        self.model, self.layout, self.store = model, layout, store

    @abstractmethod
    def train_step(self, batches: list[Tensor]) -> float:
        """One optimizer step over micro-batches ``(b, s + 1)``; the mean loss over all ranks. Collective."""

    @abstractmethod
    def current_loss(self) -> float | None:
        """Mean loss of the step in progress on this rank; None on a rank that does not see it."""

    @abstractmethod
    def loss(self, tokens: Tensor) -> float:
        """Loss of a micro-batch ``(b, s + 1)`` without training, averaged over data-parallel ranks. Collective."""

    @abstractmethod
    def next_logits(self, tokens: Tensor, last: Tensor) -> Tensor | None:
        """What follows position ``last`` ``(b,)`` of each row of ``tokens`` ``(b, s)``, a micro-batch at most.

        Collective: all ranks give the same rows.

        Returns:
            Logits ``(b, v)`` in fp32; None on a rank that does not see them.
        """

    @abstractmethod
    def gradient_norm(self) -> float:
        """Global norm of the last step's gradients, before clipping; inf after an overflow."""

    def step_applied(self) -> bool:
        """Whether the last step changed weights: not so after an overflow or a veto."""
        return self.store.step_applied()

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step, before the factors of parameter groups and ages."""
        for group in self.store.optimizer.param_groups:
            group["lr"] = rate

    @abstractmethod
    def before_update(self, action: Callable[[], None]) -> Callable[[], None]:
        """Call ``action`` whenever the last backward of a step is done, while its gradients exist.

        Returns:
            Call it to end that.
        """

    @abstractmethod
    def veto(self, skip: Callable[[float], bool]) -> None:
        """Ask ``skip`` at every step, with the gradients' global norm, whether to leave the step out.

        Every rank must give the same answer. Steps whose gradients are not finite are left out unasked.
        """

    @abstractmethod
    def collective_facts(self) -> dict[str, list[str]]:
        """What must be alike on all ranks, or they wait in different calls; see ``ZeroStore.collective_facts``."""

    @property
    @abstractmethod
    def kept_whole(self) -> int:
        """Parameters of at most so many elements are whole on every rank, beside the partitions of all."""

    def traffic(self) -> TrafficCounter:
        """A counter of what this rank sends; it counts while it is open."""
        return TrafficCounter(self.layout)

    @abstractmethod
    def clocked(self, around: Around) -> AbstractContextManager[None]:
        """While it is open, each part of a step (see ``parts``) runs inside of ``around(part)``."""


def fill_up(tokens: Tensor, rows: int) -> Tensor:
    """``tokens`` ``(b, s + 1)`` with filler rows up to ``rows``: pipelines want batches of one size."""
    filler = torch.full((rows - tokens.shape[0], tokens.shape[1]), FILLER, dtype=tokens.dtype)
    return torch.cat([tokens, filler])
