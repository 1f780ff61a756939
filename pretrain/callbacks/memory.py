"""memory.json: bytes at rest per rank by kind, planned beside measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.plan.memory import gradient_at_rest, offloaded
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import MEMORY
from smet import parameter_groups
from smet.bank import bucket_key
from smet.linear import SparseLinear, sparse_layers
from smet.mask import packed_bytes
from smet.memory import OFFLOADED, Part, Table, measure, plan

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


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
        ranks = trainer.layout.gather_objects({**planned(trainer), "measured": measured})
        if trainer.layout.is_main:
            self.folder.write_json(MEMORY, report(trainer, ranks))

    @staticmethod
    def _measure(trainer: Trainer) -> Table:
        means = trainer.topology.gradients.means.values()
        return measure(trainer.store, trainer.bank, sparse_layers(trainer.engine.model), means)


def planned(trainer: Trainer) -> dict[str, Any]:
    """This rank's planned bytes by part and kind, from the sizes of its part of the model."""
    config, layout = trainer.config, trainer.layout
    layers = sparse_layers(trainer.engine.model)
    stage, half = config.parallel.zero_stage, config.train.precision == "bf16"
    sharded, gradient = config.sparsity.mask_residency == "sharded", gradient_at_rest(config, layout.dp_size)
    state = trainer.store.optimizer.formula.width()
    total = sum(layer.grid.rows * layer.grid.cols for layer in layers.values())
    parts = _parts(trainer, layers)
    return {
        "sparse_weights": total,
        "active_weights": sum(layer.active * layer.grid.tile_size for layer in layers.values()),
        "planned": {n: plan(part, stage, layout.dp_size, half, sharded, gradient, state) for n, part in parts.items()},
        "planned_if_dense": plan(Part(groups=(((total,), False),)), stage, layout.dp_size, half, gradient=gradient),
    }


def _parts(trainer: Trainer, layers: dict[str, SparseLinear]) -> dict[str, Part]:
    """The sparse layers of this rank's part of the model, and everything else."""
    groups = parameter_groups(trainer.engine.model, trainer.config.sparsity)
    buckets: dict[str, int] = {}
    for name, layer in layers.items():
        if not layer.is_full:
            buckets[bucket_key(name)] = buckets.get(bucket_key(name), 0) + layer.grid.mask_bytes
    means = trainer.topology.gradients.means
    kept = tuple((layer.grid.tiles, layer.grid.tile_size) for name, layer in layers.items() if name in means)
    lengths = {
        group["name"]: (
            tuple(getattr(p, "ds_numel", p.numel()) for p in group["params"]), bool(group.get("aged", False))
        )
        for group in groups
    }  # fmt: skip
    return {
        part: Part(
            groups=tuple(value for name, value in lengths.items() if name.startswith("sparse") == (part == "sparse")),
            buckets=tuple(buckets.values()) if part == "sparse" else (),
            means=kept if part == "sparse" else (),
            closed=sum(packed_bytes(layer.active) for layer in layers.values() if layer.falls) * (part == "sparse"),
            persistent=trainer.engine.kept_whole,
        )
        for part in ("sparse", "dense")
    }


def report(trainer: Trainer, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of memory.json: bytes of every rank, and the fullest rank's sparse layers against dense ones."""
    config, layout = trainer.config, trainer.layout
    fullest = max(ranks, key=lambda rank: sum(rank["measured"]["sparse"].values()))
    measured, as_dense = (sum(kinds.values()) for kinds in (fullest["measured"]["sparse"], fullest["planned_if_dense"]))
    return {
        "unit": "bytes",
        "world_size": layout.world_size,
        "layout": {"data": layout.dp_size, "tensor": layout.tensor_size, "pipeline": layout.stages},
        "zero_stage": config.parallel.zero_stage,
        "precision": config.train.precision,
        "in_host_memory": list(OFFLOADED) if offloaded(config) else [],
        "density": config.sparsity.first_density,
        "measured_at_step": trainer.step,
        "sparse_layers": {
            "weights": fullest["sparse_weights"],
            "active_weights": fullest["active_weights"],
            "measured": measured,
            "planned": sum(fullest["planned"]["sparse"].values()),
            "planned_if_dense": as_dense,
            "ratio_to_dense": measured / as_dense,
        },
        "planned_per_rank": [rank["planned"] for rank in ranks],
        "measured_per_rank": [rank["measured"] for rank in ranks],
    }
