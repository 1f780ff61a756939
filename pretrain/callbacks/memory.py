"""memory.json: bytes at rest per rank by kind, planned beside measured."""

from __future__ import annotations

from typing import Any

from pretrain.callbacks.base import Callback, Record
from pretrain.run_folder import RunFolder
from pretrain.trainer import Trainer
from smet.linear import SparseLinear, sparse_layers
from smet.memory import Sizes, Table, measure, plan


class MemoryCallback(Callback):
    """Measures once, in the first step of this process.

    Gradients are taken when the last backward of the step is done; everything else after the step,
    when no gathered mask or weight is left.
    """

    name = "memory"

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._gradients: Table | None = None
        self._done = False

    def before_update(self, trainer: Trainer) -> None:
        """Measure gradients at the accumulation boundary."""
        if not self._done:
            self._gradients = self._measure(trainer)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Measure the rest, and write the report."""
        if self._done or self._gradients is None:
            return
        self._done = True
        trainer.bank.release()
        measured = self._measure(trainer)
        for part, kinds in measured.items():
            kinds["gradients"] = self._gradients[part]["gradients"]
        ranks = trainer.layout.gather_objects(measured)
        if trainer.layout.is_main:
            self.folder.write_json("memory.json", report(trainer, ranks))

    @staticmethod
    def _measure(trainer: Trainer) -> Table:
        return measure(trainer.store, trainer.bank, sparse_layers(trainer.engine.module))


def report(trainer: Trainer, ranks: list[Table]) -> dict[str, Any]:
    """The content of memory.json: bytes per rank, and the sparse layers against the same layers dense."""
    config, layers = trainer.config, sparse_layers(trainer.engine.module)
    stage, dp = config.parallel.zero_stage, trainer.layout.dp_size
    half = config.train.precision == "bf16"
    values = sum(layer.active * layer.grid.block_size for layer in layers.values())
    sparse = Sizes(values, _mask_bits(layers), aged=config.sparsity.dynamic)
    total = sum(layer.grid.rows * layer.grid.cols for layer in layers.values())
    planned = {
        "sparse": plan(sparse, stage, dp, half, config.sparsity.mask_residency == "sharded"),
        "dense": plan(Sizes(_dense_weights(trainer, layers)), stage, dp, half),
    }
    as_dense = plan(Sizes(total), stage, dp, half)
    most = max(sum(rank["sparse"].values()) for rank in ranks)
    return {
        "unit": "bytes",
        "world_size": trainer.layout.world_size,
        "zero_stage": stage,
        "precision": config.train.precision,
        "density": config.sparsity.density,
        "measured_at_step": trainer.step,
        "planned_per_rank": planned,
        "measured_per_rank": ranks,
        "sparse_layers": {
            "weights": total,
            "active_weights": values,
            "measured": most,
            "planned": sum(planned["sparse"].values()),
            "planned_if_dense": sum(as_dense.values()),
            "ratio_to_dense": most / sum(as_dense.values()),
        },
    }


def _mask_bits(layers: dict[str, SparseLinear]) -> int:
    return sum(layer.grid.mask_bytes * 8 for layer in layers.values() if not layer.is_full)


def _dense_weights(trainer: Trainer, layers: dict[str, SparseLinear]) -> int:
    sparse = {id(layer.values) for layer in layers.values()}
    parameters = [p for p in trainer.engine.module.parameters() if id(p) not in sparse]
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
