"""Everything optional in the train loop is a callback with its own state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

Record = dict[str, Any]
"""What one optimizer step reports; callbacks add to it, later ones see what earlier ones added."""


class Callback:
    """Hooks of the train loop, in the order in which they are called. All ranks call all hooks."""

    name = "callback"

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, after any checkpoint was loaded."""

    def before_step(self, trainer: Trainer) -> None:
        """Before the first micro-batch of a step."""

    def before_update(self, trainer: Trainer) -> None:
        """After the last backward pass of a step, while its gradients exist."""

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """After the optimizer step; ``trainer.step`` counts it already."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of this process, also when it stops early."""

    def close(self) -> None:
        """Free what the callback holds; called also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that a checkpoint keeps for this callback."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
