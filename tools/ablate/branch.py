"""The branch experiment: from one state, the same batches under each remedy, and under no update at all.

It stands in the train loop right before the topology callback of an ordinary run. At each of the chosen
steps it keeps the state, continues from it once per variant, and puts it back; the run goes on as if
nothing had happened. Within a branch there is one topology update, at its start, the same for all variants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pretrain.callbacks.base import Callback, Record
from pretrain.callbacks.topology import TopologyCallback
from pretrain.errors import ConfigError
from pretrain.records import append, keep_until
from pretrain.schedule import learning_rate
from pretrain.trainer import Trainer
from smet.linear import sparse_layers

from .probe import HeldOut
from .snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one branch continues. What is None stays as the run has it."""

    update: bool = True
    """Whether the topology changes at the branch's start."""
    frozen: bool = False
    """Keep what was grown at zero: the loss that pruning alone costs."""
    reference: str | None = None
    """The variant without an update that this one is compared with."""
    bias_correction: str | None = None
    warmup_steps: int | None = None
    warmup_scope: str | None = None
    lr_exponent: float | None = None

    @staticmethod
    def of(name: str, given: dict[str, Any]) -> Variant:
        """From the matrix file.

        Raises:
            ConfigError: an unknown key.
        """
        try:
            return Variant(**given)
        except TypeError as error:
            raise ConfigError(f"branches.variants.{name}: {error}") from None

    def apply(self, trainer: Trainer) -> None:
        """Set the trainer's remedies; ``Snapshot.restore`` takes them back."""
        ages = trainer.topology.ages
        given = {key: getattr(self, key) for key in ("bias_correction", "warmup_steps", "warmup_scope")}
        ages.remedies = replace(ages.remedies, **{key: value for key, value in given.items() if value is not None})
        if self.lr_exponent is None:
            return
        for group in trainer.store.optimizer.param_groups:
            kind, _, density = str(group.get("name", "")).partition("-")
            if kind == "sparse":
                now = trainer.topology.density_of(group) if "densities" in group else float(density)
                group["lr_factor"] = now**-self.lr_exponent


class Branches(Callback):
    """Writes one row of ``branches.jsonl`` per branching step: ``{step, fraction, lr, losses}``.

    ``losses`` maps each variant to its losses on the held-out batch, after the steps named in ``evaluate``;
    step 0 is right behind the update.
    """

    name = "ablate-branches"

    def __init__(self, path: Path, settings: dict[str, Any], held_out: HeldOut):
        self.path, self.held_out = path, held_out
        self.at = frozenset(int(step) for step in settings["at"])
        self.evaluate = sorted({0, *(int(step) for step in settings["evaluate"])})
        self.variants = {name: Variant.of(name, given or {}) for name, given in settings["variants"].items()}

    def on_start(self, trainer: Trainer) -> None:
        """Forget what will be measured again."""
        if trainer.layout.is_main:
            keep_until(self.path, trainer.step)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Branch off, if this is one of the steps."""
        if trainer.step not in self.at:
            return
        state, losses = Snapshot(trainer), {}
        for name, variant in self.variants.items():
            trainer.heartbeat.mark(f"branch {name}", trainer.step)
            losses[name] = self._continue(trainer, variant)
            state.restore()
        if trainer.layout.is_main:
            fraction = trainer.topology.schedule.prune_fraction(trainer.step)
            append(self.path, {"step": trainer.step, "fraction": fraction, "lr": record["lr"], "losses": losses})

    def _continue(self, trainer: Trainer, variant: Variant) -> dict[str, float]:
        trainer.store.optimizer.advance()  # the topology callback, which counts the last step, has not run yet
        variant.apply(trainer)
        if variant.update:
            trainer.topology.update()
        losses = {"0": self.held_out.loss()}
        for done in range(1, self.evaluate[-1] + 1):
            _step(trainer)
            if variant.frozen:
                _freeze_newborn(trainer)
            if done in self.evaluate:
                losses[str(done)] = self.held_out.loss()
        return losses


def _step(trainer: Trainer) -> None:
    """One optimizer step of the run, without its callbacks and without a topology update."""
    rate = learning_rate(trainer.step, trainer.config.optimizer, trainer.total_steps)
    trainer.engine.set_learning_rate(rate)
    for layer in trainer.topology.all_layers.values():
        layer.values_changed()
    trainer.engine.train_step(trainer.loader.batches(trainer.consumed_samples))
    if trainer.engine.step_applied():
        trainer.store.optimizer.advance()
    for layer in trainer.topology.all_layers.values():
        layer.values_changed()
    trainer.step += 1
    trainer.consumed_samples += trainer.config.train.global_batch_size


@torch.no_grad()
def _freeze_newborn(trainer: Trainer) -> None:
    """Put what was grown at the last update back to zero. Collective."""
    for layer in sparse_layers(trainer.engine.model).values():
        fragment = trainer.store.fragment(layer.values)
        newborn = fragment.state["birth"] == trainer.topology.last_code
        kept = [tensor for name, tensor in fragment.state.items() if name != "birth"]  # whichever formula keeps it
        for tensor in (fragment.master, *kept):
            tensor[newborn] = 0
    trainer.store.publish()


def attach(trainer: Trainer, settings: dict[str, Any], path: Path) -> None:
    """Put the callback before the trainer's topology callback."""
    place = next(i for i, callback in enumerate(trainer.callbacks) if isinstance(callback, TopologyCallback))
    trainer.callbacks.insert(place, Branches(path, settings, HeldOut(trainer, int(settings["samples"]))))
