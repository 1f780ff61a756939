"""Saves checkpoints while the run goes on."""

from __future__ import annotations

from pretrain.callbacks.base import Callback, Record
from pretrain.checkpoint.content import state_of, vectors_of
from pretrain.checkpoint.probe import probe_loss
from pretrain.checkpoint.save import Saver
from pretrain.trainer import Trainer


class CheckpointCallback(Callback):
    """Saves every ``checkpoint.interval`` steps, and where the run ends or stops."""

    name = "checkpoint"

    def __init__(self, saver: Saver):
        self.saver = saver
        self._saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        """A resumed run's first state is on disk already."""
        self._saved_step = trainer.step

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Look after a save in progress; start one if it is due."""
        self.saver.poll()
        interval = trainer.config.checkpoint.interval
        if interval and trainer.step % interval == 0:
            self.save(trainer, wait=not trainer.config.checkpoint.asynchronous)
            record["checkpoint_seconds"] = self.saver.seconds_blocked

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
        state["probe"] = {"tokens": tokens, "loss": probe_loss(trainer.engine, tokens, trainer.layout)}
        model = trainer.engine.module.llama
        self.saver.save(trainer.step, vectors_of(model, trainer.store, trainer.bank), state, wait)
        self._saved_step = trainer.step
