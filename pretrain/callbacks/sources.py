"""What each corpus gave: in the metrics, in every checkpoint, and a line when a curriculum's stage begins.

Tokens also as epochs, since repeated text is worth less than new text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.data.corpus import Curriculum
from pretrain.data.epochs import epochs, epochs_of_each

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class SourcesCallback(Callback):
    """Adds ``epochs``, how often the run has gone through all of its text; to the record of runs on several corpora
    also ``tokens/PREFIX`` and ``epochs/PREFIX``, what each gave so far.

    It stands before the checkpoint callback, which saves its counts with the step that they belong to.
    """

    name = "sources"

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self._stage: int | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Count what earlier processes of this run drew."""
        self._count(trainer)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Count on, and record the counts."""
        self._count(trainer)
        corpus, samples = trainer.loader.corpus, trainer.consumed_samples
        record["epochs"] = epochs(corpus, samples)
        if len(self.tokens) > 1:
            record.update({f"tokens/{prefix}": count for prefix, count in self.tokens.items()})
            record.update({f"epochs/{prefix}": count for prefix, count in epochs_of_each(corpus, samples).items()})

    def _count(self, trainer: Trainer) -> None:
        corpus, samples = trainer.loader.corpus, trainer.consumed_samples
        self.tokens = {prefix: count * corpus.seq_length for prefix, count in corpus.consumed(samples).items()}
        if isinstance(corpus, Curriculum) and corpus.stage(samples) != self._stage:
            self._stage = corpus.stage(samples)
            if trainer.layout.is_main:
                print(corpus.describe(self._stage), flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Tokens by prefix."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.tokens = state["tokens"]
