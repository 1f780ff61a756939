"""TopologyController: applies topology updates across ranks, layer by layer.

A decision is a pure function of (master weights, mask, seed, layer name, update number), so all
data-parallel ranks of a layer reach the same mask at every ZeRO stage, and nobody broadcasts one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet.ages import AgeTable
from smet.bank import MaskBank
from smet.config import SmetConfig
from smet.errors import ConfigError
from smet.exchange import Range, all_ranges, gather, redistribute
from smet.growth import DenseGradients
from smet.linear import SparseLinear, sparse_layers
from smet.mask import combined_digest, digest
from smet.schedule import TopologySchedule
from smet.seeds import generator
from smet.store import Fragment, ParameterStore
from smet.topology import TopologyChange, block_scores, change_by_ranges


class MaskMismatchError(RuntimeError):
    """Ranks that must hold the same masks do not."""


@dataclass
class UpdateReport:
    """What one topology update did. ``pruned`` and ``grown`` count blocks over all layers of this rank."""

    step: int
    update: int
    fraction: float
    pruned: int = 0
    grown: int = 0
    recycled: int = 0
    """Pruned blocks that had been grown at the update just before."""
    seconds: float = 0.0
    digest: str = ""
    density: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def merged(reports: Sequence[UpdateReport]) -> UpdateReport:
        """One report of all shards of a model: counts add up, the slowest rank's time counts."""
        first = reports[0]
        if len(reports) == 1:
            return first
        density: dict[str, list[float]] = {}
        for report in reports:
            for name, value in report.density.items():
                density.setdefault(name, []).append(value)
        return UpdateReport(
            first.step, first.update, first.fraction,
            pruned=sum(report.pruned for report in reports),
            grown=sum(report.grown for report in reports),
            recycled=sum(report.recycled for report in reports),
            seconds=max(report.seconds for report in reports),
            digest=combined_digest({str(shard): report.digest for shard, report in enumerate(reports)}),
            density={name: sum(values) / len(values) for name, values in density.items()},
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """One line of ``topology.jsonl``."""
        return dict(vars(self))


class TopologyController:
    """Owns the masks' schedule and the clock of ``store.optimizer``.

    Call ``before_step()`` before a step's first micro-batch and ``after_step()`` after its update.

    Args:
        model: has ``SparseLinear`` layers.
        config: method and schedule.
        store: fragments of master weights and state.
        bank: serves the masks; sharded over ``store.group``.
        total_steps: length of the run in optimizer steps.
        shard, shards: which tensor-parallel part of how many the layers are.

    Raises:
        ConfigError: ``topology_ranges`` is not a multiple of ``shards``, or does not divide a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SmetConfig,
        store: ParameterStore,
        bank: MaskBank,
        total_steps: int,
        shard: int = 0,
        shards: int = 1,
    ):
        self.config, self.store, self.bank = config, store, bank
        self.shard, self.shards = shard, shards
        self.ranges = config.topology_ranges if config.topology_ranges > 1 else shards
        self.schedule = TopologySchedule(config, total_steps)
        self.updates_done = 0
        self.last_code = 0
        all_layers = sparse_layers(model)
        self.all_layers = all_layers
        self.layers = {
            name: layer for name, layer in all_layers.items() if layer.values.requires_grad and not layer.is_full
        }
        self._check_ranges()
        own = [store.fragment(layer.values).range for layer in self.layers.values()]
        self._ranges = dict(zip(self.layers, all_ranges(own, store.group), strict=True))
        self.gradients = DenseGradients(store.group)
        """Dense gradients of the step in progress, if it ends in an update that grows by them."""
        self._rank = dist.get_rank(store.group) if store.group is not None else 0

    def _check_ranges(self) -> None:
        found = []
        if self.ranges % self.shards:
            found.append(
                f"sparsity.topology_ranges is {self.ranges}, expected 1 or a multiple of the {self.shards} "
                "tensor-parallel ranks"
            )
        for name, layer in self.layers.items():
            if not found and layer.grid.blocks % (self.ranges // self.shards):
                found.append(
                    f"sparsity.topology_ranges is {self.ranges}, which does not divide the {layer.grid.blocks} blocks "
                    f"of {name}; choose 1 or a divisor"
                )
        if found:
            raise ConfigError(found)

    @property
    def ages(self) -> AgeTable:
        """The optimizer's age table."""
        return self.store.optimizer.ages

    def before_step(self) -> None:
        """Ask the layers for dense gradients if this step ends in a gradient-grown update."""
        if self.config.growth != "gradient" or not self.schedule.due(self.store.optimizer.steps_done + 1):
            return
        self.gradients.collect(self.layers.values())

    def after_step(self) -> UpdateReport | None:
        """Advance the clock if the step was applied, and update the topology when that is due."""
        report = None
        if self.store.step_applied():
            optimizer = self.store.optimizer
            if optimizer.external_clock:
                optimizer.advance()
            if self.schedule.due(optimizer.steps_done):
                report = self.update()
        for layer in self.all_layers.values():
            layer.drop_dense_weight()
        self.gradients.stop(self.layers.values())
        return report

    @torch.no_grad()
    def update(self) -> UpdateReport:
        """One topology update of every layer. Collective over the data-parallel ranks.

        Raises:
            MaskMismatchError: ranks ended with different masks.
        """
        begin = time.perf_counter()
        step = self.store.optimizer.steps_done
        report = UpdateReport(step, self.updates_done + 1, self.schedule.prune_fraction(step))
        young = self._young_codes(step)  # before open(), which may give one of the old codes out again
        code, recode = self.ages.open(step)
        digests = {}
        for name, layer in self.layers.items():
            bits = self._update_layer(name, layer, code, recode, young, report)
            digests[name] = digest(bits)
            report.density[name] = layer.density
        self.store.publish()
        self.updates_done += 1
        self.last_code = code
        report.digest = combined_digest(digests)
        self._require_agreement(report.digest)
        report.seconds = time.perf_counter() - begin
        return report

    def _update_layer(
        self, name: str, layer: SparseLinear, code: int, recode: dict[int, int], young: list[int], report: UpdateReport
    ) -> Tensor:
        fragment = self.store.fragment(layer.values)
        bits = self.bank.bits(layer)
        size = layer.grid.block_size
        scores = block_scores(gather(fragment.master, fragment.range, fragment.total, self.store.group), size)
        births = gather(fragment.state["birth"], fragment.range, fragment.total, self.store.group)[::size]
        change = change_by_ranges(
            scores.to(bits.device), bits, layer.grid.blocks, report.fraction, self._generators(name),
            protected=torch.isin(births, births.new_tensor(young)).to(bits.device) if young else None,
            gradient_scores=self.gradients.scores(layer) if self.config.growth == "gradient" else None,
        )  # fmt: skip
        report.pruned += change.count
        report.grown += change.count
        if self.last_code:
            report.recycled += int(((births == self.last_code) & ~change.kept.to(births.device)).sum())
        self._move_state(fragment, change, size, self._ranges[name], code, recode)
        self.bank.write(layer, change.bits)
        return change.bits

    def _generators(self, name: str) -> list[torch.Generator]:
        """One source of random growth for each range of this rank's shard of layer ``name``."""
        own = self.ranges // self.shards
        numbers = range(self.shard * own, (self.shard + 1) * own)
        return [generator(self.config.seed, "grow", name, number, self.updates_done) for number in numbers]

    def _young_codes(self, step: int) -> list[int]:
        """Birth codes of the blocks grown within the last ``protect_rounds`` updates."""
        if self.config.protect_rounds == 0:
            return []
        horizon = step - self.config.protect_rounds * self.config.update_interval
        return [code for code, birth in enumerate(self.ages.births) if code and birth is not None and birth >= horizon]

    def _move_state(
        self, fragment: Fragment, change: TopologyChange, size: int, ranges: list[Range], code: int,
        recode: dict[int, int],
    ) -> None:  # fmt: skip
        device = fragment.master.device
        kept = change.kept.repeat_interleave(size).to(device)
        grown = change.grown.repeat_interleave(size).to(device)
        own_grown = grown[fragment.start : fragment.start + fragment.master.numel()]
        for old, new in recode.items():
            fragment.state["birth"][fragment.state["birth"] == old] = new
        for tensor in (fragment.master, *fragment.state.values()):
            tensor.copy_(redistribute(tensor, kept, grown, ranges, self._rank, self.store.group))
        fragment.state["birth"][own_grown] = code

    def _require_agreement(self, own: str) -> None:
        if self.store.group is None:
            return
        digests: list[Any] = [None] * dist.get_world_size(self.store.group)
        dist.all_gather_object(digests, own, group=self.store.group)
        if len(set(digests)) > 1:
            raise MaskMismatchError(f"masks differ over data-parallel ranks after a topology update: {digests}")

    def mask_digest(self) -> str:
        """Digest of all masks of this rank's layers. Collective where masks are sharded."""
        digests = {name: digest(self.bank.bits(layer)) for name, layer in self.layers.items()}
        self.bank.release()
        return combined_digest(digests)

    def state_dict(self) -> dict[str, Any]:
        """Clock, ages and schedule position; masks and weights are saved as tensors of their own."""
        return {
            "steps_done": self.store.optimizer.steps_done,
            "updates_done": self.updates_done,
            "last_code": self.last_code,
            "ages": self.ages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.store.optimizer.steps_done = state["steps_done"]
        self.updates_done, self.last_code = state["updates_done"], state["last_code"]
        self.ages.load_state_dict(state["ages"])
