"""Bytes sent per step by kind, counted from the actual collectives and logged with the step."""

from __future__ import annotations

from typing import Any

from pretrain.callbacks.base import Callback, Record
from pretrain.layout import Layout
from pretrain.traffic import TrafficCounter
from pretrain.trainer import Trainer
from smet.controller import UpdateReport


class TrafficCallback(Callback):
    """Adds ``bytes_sent_<kind>`` of this rank (see ``pretrain.traffic``) to every step's record.

    Put it before the callbacks that evaluate and update the topology: what these send after a step is
    reported with the next one, a topology update's under its own kind.
    """

    name = "traffic"

    def __init__(self, layout: Layout):
        self.counter = TrafficCounter(layout)
        self._open = False

    def on_start(self, trainer: Trainer) -> None:
        """Start to count; tell topology updates apart."""
        self.counter.__enter__()
        self._open = True
        update = trainer.topology.update

        def counted_update() -> UpdateReport:
            with self.counter.as_kind("topology"):
                return update()

        trainer.topology.update = counted_update  # type: ignore[method-assign]

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Add this step's bytes to its record."""
        taken: dict[str, Any] = self.counter.take()
        record.update({f"bytes_sent_{kind}": sent for kind, sent in taken.items()})
        record["bytes_sent"] = sum(taken.values())

    def close(self) -> None:
        """Stop counting."""
        if self._open:
            self.counter.__exit__()
            self._open = False
