"""Bytes sent per step by kind, counted from the actual collectives and logged with the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pretrain.callbacks.base import Callback, Record
from pretrain.layout import Layout
from pretrain.traffic import TrafficCounter
from pretrain.trainer import Trainer

P = ParamSpec("P")
T = TypeVar("T")


class TrafficCallback(Callback):
    """Adds ``bytes_sent_<kind>`` of this rank (see ``pretrain.traffic``) to every step's record.

    Put it before the callbacks that evaluate and update the topology: what these send after a step is
    reported with the next one. What a topology update sends has its own kind; sums of dense gradients, to grow
    by, belong to it and to the step before it.
    """

    name = "traffic"

    def __init__(self, layout: Layout):
        self.counter = TrafficCounter(layout)
        self._open = False

    def on_start(self, trainer: Trainer) -> None:
        """Start to count; tell topology updates apart."""
        self.counter.__enter__()
        self._open = True
        controller = trainer.topology
        controller.update = self._as_topology(controller.update)  # type: ignore[method-assign]
        controller.gradients.add = self._as_topology(controller.gradients.add)  # type: ignore[method-assign]

    def _as_topology(self, action: Callable[P, T]) -> Callable[P, T]:
        def counted(*arguments: P.args, **options: P.kwargs) -> T:
            with self.counter.as_kind("topology"):
                return action(*arguments, **options)

        return counted

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
