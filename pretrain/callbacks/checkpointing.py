"""Saves checkpoints while the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.checkpoint.content import state_of, vectors_of
from pretrain.checkpoint.probe import probe_loss
from pretrain.checkpoint.save import Saver

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class CheckpointCallback(Callback):
    """Saves every ``checkpoint.interval`` steps, and where the run ends or stops."""

    name = "checkpoint"

    def __init__(self, saver: Saver):
        self.saver = saver
        self._saved_step = -1
        self._report_seconds = False

    def on_start(self, trainer: Trainer) -> None:
        """A resumed run's first state is on disk already; a new one that is stopped at once leaves one too."""
        self._saved_step = trainer.step or -1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gone back: steps that were saved before will be other ones when they come again."""
        self._saved_step = -1

    def before_step(self, trainer: Trainer) -> None:
        """Save the state after the step before, if that is due.

        By now every callback has seen that step: its metrics are on disk and its skip is counted.
        """
        interval = trainer.config.checkpoint.interval
        if interval and trainer.step and trainer.step % interval == 0 and trainer.step != self._saved_step:
            self.save(trainer, wait=not trainer.config.checkpoint.asynchronous)
            self._report_seconds = True

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Look after a save in progress; tell how long the one before this step held training up."""
        self.saver.poll()
        if self._report_seconds:
            record["checkpoint_seconds"] = self.saver.seconds_blocked
            self._report_seconds = False

    def on_end(self, trainer: Trainer) -> None:
        """Save where the run ends, and wait for it."""
        if self._saved_step != trainer.step:
            self.save(trainer, wait=True)
        self.saver.finish()

    def save(self, trainer: Trainer, wait: bool) -> None:
        """Save the state after ``trainer.step``. Collective."""
        trainer.bank.release()
        state = state_of(trainer)
        tokens = trainer.loader.corpus.sample(0).tolist()
        state["probe"] = {
            "tokens": tokens,
            "loss": probe_loss(trainer.engine, tokens, trainer.config.train.micro_batch_size),
        }
        vectors = vectors_of(trainer.engine, trainer.bank, trainer.layout)
        self.saver.save(trainer.step, vectors, state, wait, trainer.products)
        self._saved_step = trainer.step
