"""Validation loss and perplexity inside the train loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.data.loader import BatchLoader
from pretrain.evaluate import evaluate

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class EvaluationCallback(Callback):
    """Adds ``validation_loss`` and ``validation_perplexity`` to the record of due steps.

    It stands before the topology callback: an evaluation right behind an update would measure the
    update's shock instead of the model.
    """

    name = "evaluation"

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Evaluate every ``evaluation.interval`` steps and after the last step of the run."""
        interval = trainer.config.evaluation.interval
        if trainer.step == trainer.total_steps or (interval and trainer.step % interval == 0):
            samples = trainer.config.evaluation.samples
            record.update(evaluate(trainer.engine, self.loader, samples, trainer.layout, trainer.stopping))

    def state_dict(self) -> dict[str, Any]:
        """What the losses so far were measured on."""
        return {"fingerprint": self.loader.corpus.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Say if later losses will be of other text."""
        before, now = state.get("fingerprint"), self.loader.corpus.fingerprint
        if before not in (None, now) and os.environ.get("RANK", "0") == "0":
            print(
                f"warning: data.validation holds other data than before (fingerprint {before[:12]} -> {now[:12]}): "
                "validation losses before and after this point do not compare",
                flush=True,
            )

    def close(self) -> None:
        """Stop the loader's reader."""
        self.loader.close()
