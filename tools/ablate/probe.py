"""What a run of the matrix measures on the way: the loss around topology updates, and how far weights move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.callbacks.base import Callback, Record
from pretrain.callbacks.evaluation import EvaluationCallback
from pretrain.callbacks.topology import TopologyCallback
from pretrain.errors import ConfigError
from pretrain.evaluate import evaluate
from pretrain.records import append, keep_until
from pretrain.trainer import Trainer
from smet.linear import sparse_layers
from smet.schedule import TopologySchedule


class HeldOut:
    """A fixed batch: the first ``samples`` of the validation corpus."""

    def __init__(self, trainer: Trainer, samples: int):
        loaders = [callback.loader for callback in trainer.callbacks if isinstance(callback, EvaluationCallback)]
        if not loaders:
            raise ConfigError("data.validation is empty, expected a corpus: the experiment evaluates a held-out batch")
        self.trainer, self.loader, self.samples = trainer, loaders[0], samples

    def loss(self) -> float:
        """Its mean loss in nats per token. Collective."""
        trainer = self.trainer
        return evaluate(trainer.engine, self.loader, self.samples, trainer.layout)["validation_loss"]


def masters(trainer: Trainer) -> dict[str, Tensor]:
    """This rank's fp32 master weights of every sparse layer, copied."""
    layers = sparse_layers(trainer.engine.model)
    return {name: trainer.store.fragment(layer.values).master.clone() for name, layer in layers.items()}


def rms(trainer: Trainer, sums: Sequence[float]) -> list[float | None]:
    """Root mean squares over all ranks from this rank's (sum of squares, count), pair by pair. Collective."""
    gathered = trainer.layout.gather_objects(list(sums))
    totals = [sum(column) for column in zip(*gathered, strict=True)]
    pairs = zip(totals[::2], totals[1::2], strict=True)
    return [(square / count) ** 0.5 if count else None for square, count in pairs]


@dataclass(frozen=True)
class Times:
    """The steps at which something is measured.

    ``updates`` are those of the topology schedule; in runs that have none they are the same steps, so
    that every method's noise is measured alike. ``offsets`` and ``ages`` count from them.
    """

    updates: tuple[int, ...]
    offsets: frozenset[int]
    ages: frozenset[int]

    @staticmethod
    def of(trainer: Trainer, settings: dict[str, Any]) -> Times:
        """From the ``probe`` section of the matrix."""
        interval = trainer.config.sparsity.update_interval or int(settings["interval"])
        dynamic = replace(trainer.config.sparsity, update_interval=interval, density=0.5)
        schedule = TopologySchedule(dynamic, trainer.total_steps)
        return Times(
            tuple(step for step in range(1, trainer.total_steps + 1) if schedule.due(step)),
            frozenset(offset for offset in settings["offsets"] if 0 != offset < interval),
            frozenset(age for age in settings["ages"] if age <= interval),
        )

    def around(self, step: int) -> list[tuple[int, int]]:
        """(update step, offset) for which ``step`` is measured."""
        return [(update, step - update) for update in self.updates if step - update in self.offsets]

    def age(self, step: int) -> int | None:
        """Age, in its update, of what was grown last, if that is measured; None otherwise."""
        ages = [step - update for update in self.updates if update < step]
        return ages[-1] if ages and ages[-1] in self.ages else None


class Before(Callback):
    """Stands right before the topology callback: the last moment of the old topology.

    Rows of ``probe.jsonl``: ``{step, update, offset, loss}`` (offset "before", "after" or steps), and
    ``{step, update, age, regrown, survivors, rate}``: root mean square change of the weights grown at the last
    update and of all others in this step, and the learning rate of sparse weights.
    """

    name = "ablate-before"

    def __init__(self, path: Path, times: Times, held_out: HeldOut):
        self.path, self.times, self.held_out = path, times, held_out
        self._masters: dict[str, Tensor] | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Forget what will be measured again."""
        if trainer.layout.is_main:
            keep_until(self.path, trainer.step)

    def before_update(self, trainer: Trainer) -> None:
        """Keep the weights, if this step's change is to be measured."""
        self._masters = masters(trainer) if self.times.age(trainer.step + 1) is not None else None

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Measure what is due, with the topology as it was during the step."""
        step = trainer.step
        if self._masters is not None and not record["skipped"]:
            self._write(trainer, self._changes(trainer, self._masters, record["lr"]))
        self._masters = None
        moments: list[tuple[int, Any]] = [*self.times.around(step)]
        if step in self.times.updates:
            moments.append((step, "before"))
        if moments:
            loss = self.held_out.loss()
            for update, offset in moments:
                self._write(trainer, {"step": step, "update": update, "offset": offset, "loss": loss})

    def _changes(self, trainer: Trainer, old: dict[str, Tensor], lr: float) -> dict[str, Any]:
        sums = [0.0] * 4
        rate = 0.0
        for group in trainer.store.optimizer.param_groups:
            if str(group.get("name", "")).startswith("sparse"):
                rate = lr * group["lr_factor"]
        for name, layer in sparse_layers(trainer.engine.model).items():
            fragment = trainer.store.fragment(layer.values)
            squares = (fragment.master - old[name]).double().square()
            young = _young(trainer, fragment.state.get("birth"), squares)
            for index, which in enumerate((young, ~young)):
                sums[2 * index] += float(squares[which].sum())
                sums[2 * index + 1] += int(which.sum())
        regrown, survivors = rms(trainer, sums)
        last = max(update for update in self.times.updates if update < trainer.step)
        return {
            "step": trainer.step, "update": last, "age": trainer.step - last, "regrown": regrown,
            "survivors": survivors, "rate": rate,
        }  # fmt: skip

    def _write(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if trainer.layout.is_main:
            append(self.path, row)


def _young(trainer: Trainer, birth: Tensor | None, like: Tensor) -> Tensor:
    """Which weights were grown at the last update."""
    code = trainer.topology.last_code
    if birth is None or code == 0:
        return torch.zeros_like(like, dtype=torch.bool)
    return birth == code


class After(Callback):
    """Stands right behind the topology callback: the first moment of the new topology."""

    name = "ablate-after"

    def __init__(self, path: Path, times: Times, held_out: HeldOut):
        self.path, self.times, self.held_out = path, times, held_out

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Evaluate once more where the topology has just changed, or would have."""
        if trainer.step not in self.times.updates:
            return
        loss = self.held_out.loss()
        for layer in sparse_layers(trainer.engine.model).values():
            layer.values_changed()  # nobody else announces the next step's new values before they are evaluated
        if trainer.layout.is_main:
            append(self.path, {"step": trainer.step, "update": trainer.step, "offset": "after", "loss": loss})


def attach(trainer: Trainer, settings: dict[str, Any], path: Path) -> None:
    """Put both callbacks around the trainer's topology callback."""
    times, held_out = Times.of(trainer, settings), HeldOut(trainer, int(settings["samples"]))
    place = next(i for i, callback in enumerate(trainer.callbacks) if isinstance(callback, TopologyCallback))
    trainer.callbacks.insert(place, Before(path, times, held_out))
    trainer.callbacks.insert(place + 2, After(path, times, held_out))
