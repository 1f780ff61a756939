"""Runs the topology controller and logs what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import TOPOLOGY
from smet.update import UpdateReport

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class TopologyCallback(Callback):
    """One line of ``topology.jsonl`` per update; a warning when an update changed nothing. Where density falls, each
    step's record has it."""

    name = "topology"

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def before_step(self, trainer: Trainer) -> None:
        """Let the layers collect dense gradients if the coming update grows by them."""
        trainer.topology.before_step()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Advance ages; update the topology if that is due."""
        report = self._updated(trainer)
        falls = trainer.config.sparsity.falls
        if falls:
            record["density"] = trainer.topology.density
        if report is None:
            return
        if trainer.layout.tensor_size * trainer.layout.stages > 1:
            everyone = trainer.layout.gather_objects((trainer.layout.is_first_replica, report))
            report = UpdateReport.merged([other for first, other in everyone if first])
        record["topology"] = report
        if not trainer.layout.is_main:
            return
        # The controller counts applied steps; files count all, so that a resume cuts both at the same place.
        self.folder.append(TOPOLOGY, {**report.to_json(), "step": trainer.step})
        if report.grown == report.pruned == 0 and not (falls and report.fraction == 0.0):
            why = f"prune fraction {report.fraction:.4g} is less than one tile per layer"
            if report.unmoved:
                why = f"no exchange of tiles was found for {report.unmoved:,} that keeps rows and columns as they are"
            print(f"warning: the topology update after step {trainer.step} changed nothing: {why}", flush=True)

    def _updated(self, trainer: Trainer) -> UpdateReport | None:
        """What the controller did. Data-parallel ranks end together by themselves, the others learn of it here."""
        layout, topology = trainer.layout, trainer.topology
        if topology.decider.own and topology.config.dynamic and layout.tensor_size * layout.stages > 1:
            return layout.agree(topology.after_step)
        return topology.after_step()

    def state_dict(self) -> dict[str, Any]:
        """The controller keeps its own state in the checkpoint."""
        return {}
