"""Everything optional in the train loop is a callback with its own state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

Record = dict[str, Any]
"""What one optimizer step reports; callbacks add to it, later ones see what earlier ones added."""


OWN = "own"
"""Where the callbacks of the run file stand, in the order in which it names them."""

ORDER = {
    "traffic": "counts what the step has sent before those behind it send more",
    "guard": "knows first whether a step counts, and goes back before anybody has begun the next one",
    "evaluation": "measures the model, and not the shock of an update right before",
    "samples": "lets the model write that was just measured",
    "topology": "moves the optimizer's clock, and changes the masks where that is due",
    "stability": "watches the losses that follow an update",
    "consistency": "compares what several ranks hold alike, updates included",
    "memory": "measures what is held at rest, when evaluation and update have let go",
    "sources": "counts samples, for the record and for the checkpoint of the same step",
    "speed": "looks at the fullest moment, which evaluation and update may be",
    OWN: "sees all of the record, and what it adds is written; its state is saved with the step that it belongs to",
    "checkpoint": "saves before a step what all others know of the step before; at the end, after their last word",
    "metrics": "writes the record, when everybody has added to it",
    "writers": "hands on what was written, and what happened until then",
    "progress": "prints what was written",
}
"""Who is called when, and why there: at each hook, every callback in this order, on all ranks."""


class Callback:
    """Hooks of the train loop, in the order in which they are called. All ranks call all hooks.

    A hook that decides something decides alike on all ranks: what it looks at is global, or it asks
    ``trainer.layout``. What only one rank is to do (``trainer.layout.is_main``) is no collective, nor is ``__init__``.
    """

    name = "callback"
    """Checkpoints keep its state under it. One of the run file that says none is called what the run file calls it."""

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
