"""How far the loss jumps after a topology update, measured against the run's own noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.run_folder import RunFolder
from pretrain.stability import RobustWindow

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

BEFORE, AFTER = 32, 8
"""Steps whose losses stand for the time before and behind an update."""
ALARM = 5.0
"""Deviations of a mean of ``AFTER`` losses that no run shows by chance."""


class StabilityCallback(Callback):
    """Adds ``update_loss_jump`` (nats) and ``update_loss_deviations`` to the record ``AFTER`` steps behind an update.

    The jump is the mean training loss of those steps minus the median of the ``BEFORE`` steps that led up to the
    update; the deviations are that over the standard error to be expected from the noise before it. Beyond ``ALARM``
    it warns, and writes an event. Falling losses make jumps negative, so this errs on the quiet side early in a run.
    """

    name = "stability"

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.before = RobustWindow(BEFORE, floor=1e-3)
        self.after: list[float] = []
        self.update: dict[str, Any] | None = None
        """The update that is being watched: its number and step."""

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Collect the loss; judge the last update when enough steps have followed it."""
        if self.update is not None and not record["skipped"]:
            self.after.append(record["loss"])
            if len(self.after) == AFTER:
                self._judge(trainer, record)
        if self.update is None and not record["skipped"]:
            self.before.add(record["loss"])
        if "topology" in record and self.before.ready:
            self.update = {"update": record["topology"].update, "step": trainer.step}
            self.after = []

    def _judge(self, trainer: Trainer, record: Record) -> None:
        assert self.update is not None
        mean = sum(self.after) / AFTER
        jump, deviations = mean - self.before.median, self.before.deviations(mean) * AFTER**0.5
        record["update_loss_jump"], record["update_loss_deviations"] = jump, deviations
        if deviations > ALARM and trainer.layout.is_main:
            print(
                f"warning: the loss rose by {jump:.3g} after topology update {self.update['update']} (step "
                f"{self.update['step']}), {deviations:.1f} times what this run's noise explains; see that "
                "sparsity.bias_correction is local and sparsity.warmup_steps above 0, or lower sparsity.prune_start",
                flush=True,
            )
            event = {"kind": "jump", **self.update, "jump": jump, "deviations": deviations}
            self.folder.append_event(**event)
        for loss in self.after:
            self.before.add(loss)
        self.update, self.after = None, []

    def state_dict(self) -> dict[str, Any]:
        """The losses that the next judgement needs."""
        return {"before": self.before.state_dict(), "after": self.after, "update": self.update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.before.load_state_dict(state["before"])
        self.after, self.update = list(state["after"]), state["update"]
