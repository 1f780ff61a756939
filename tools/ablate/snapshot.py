"""The whole state of a trainer in memory: what a checkpoint holds, to go back to as often as wanted."""

from __future__ import annotations

import copy

from pretrain.checkpoint.content import vectors_of
from pretrain.checkpoint.vectors import Vectors
from pretrain.trainer import Trainer


class Snapshot:
    """State of ``trainer`` now. Collective."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._tensors = {name: vector.local.detach().clone() for name, vector in self._live().items()}
        self._topology = copy.deepcopy(trainer.topology.state_dict())
        self._position = trainer.step, trainer.consumed_samples
        self._factors = [group["lr_factor"] for group in trainer.store.optimizer.param_groups]
        self._remedies = trainer.topology.ages.remedies

    def restore(self) -> None:
        """Put it back. Collective."""
        trainer = self.trainer
        trainer.bank.release()  # a gathered mask would outlive the bits it was gathered from
        for name, vector in self._live().items():
            vector.local.copy_(self._tensors[name])
        trainer.bank.release()
        trainer.store.publish()
        trainer.topology.load_state_dict(copy.deepcopy(self._topology))
        trainer.step, trainer.consumed_samples = self._position
        for group, factor in zip(trainer.store.optimizer.param_groups, self._factors, strict=True):
            group["lr_factor"] = factor
        trainer.topology.ages.remedies = self._remedies
        for layer in trainer.topology.all_layers.values():
            layer.values_changed()

    def _live(self) -> Vectors:
        trainer = self.trainer
        return vectors_of(trainer.engine, trainer.bank, trainer.layout)
