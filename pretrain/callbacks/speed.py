"""How much of what its devices can do a run does: FLOP/s, MFU, and the memory of the fullest rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.callbacks.base import Callback, Record
from pretrain.config import RunConfig
from pretrain.peak import peak_memory

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class SpeedCallback(Callback):
    """Adds ``tflops`` and ``mfu`` (of active weights), ``hardware_tflops`` and ``hfu`` (of what backends compute), all
    per device, and ``memory_peak`` of this rank and ``memory_peak_fullest`` of the fullest one, in bytes.

    The fullest rank is known from the reduction that asks before each step whether to stop: of the steps before.
    """

    name = "speed"

    def __init__(self, config: RunConfig):
        self.sparsity = config.sparsity

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Add the figures."""
        assert trainer.yardstick is not None  # of a run that was prepared
        share = trainer.topology.density / self.sparsity.first_density if self.sparsity.falls else 1.0
        own = peak_memory(trainer.layout.device)
        record.update(
            trainer.yardstick.figures(record["step_seconds"], share),
            memory_peak=own,
            memory_peak_fullest=max(own, trainer.fullest_rank),
        )
