"""Bytes sent per step by kind, counted from the actual collectives and logged with the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.engine.traffic import TrafficCounter

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class TrafficCallback(Callback):
    """Adds ``bytes_sent_<kind>`` of this rank (see ``pretrain.traffic``) to every step's record.

    Put it before the callbacks that evaluate and update the topology: what these send after a step is
    reported with the next one. What a topology update sends has its own kind; sums of dense gradients, to grow
    by, belong to it and to the step before it.
    """

    name = "traffic"

    def __init__(self) -> None:
        self.counter: TrafficCounter | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Start to count."""
        self.counter = trainer.engine.traffic().__enter__()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Add this step's bytes to its record."""
        assert self.counter is not None
        taken: dict[str, Any] = self.counter.take()
        record.update({f"bytes_sent_{kind}": sent for kind, sent in taken.items()})
        record["bytes_sent"] = sum(taken.values())

    def close(self) -> None:
        """Stop counting."""
        if self.counter is not None:
            self.counter.__exit__()
            self.counter = None
