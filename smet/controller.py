"""TopologyController: applies topology updates across ranks, layer by layer.

A decision is a pure function of (master weights, mask, seed, layer name, update number), so all
data-parallel ranks of a layer reach the same mask at every ZeRO stage, and nobody broadcasts one.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet import copies, gradual
from smet.activity import TOPOLOGY, during
from smet.agreement import MaskMismatchError, require_same_decisions, require_same_result
from smet.bank import MaskBank
from smet.births import Codes, open_codes, recode
from smet.config import SmetConfig
from smet.decisions import Decider
from smet.errors import ConfigError
from smet.exchange import Range, all_ranges, gather, redistribute
from smet.fields import shown
from smet.gradual import Room, Stored, follow_density, layer_digest, read_closed
from smet.growth import Gradients
from smet.linear import SparseLinear, sparse_layers
from smet.mask import combined_digest, digest
from smet.notices import still_notices, tell_of_run
from smet.optim.aged import TopologyPosition
from smet.optim.ages import CLOSED, AgeTable
from smet.say import note
from smet.schedule import TopologySchedule
from smet.store import Fragment, ParameterStore
from smet.topology import TopologyChange
from smet.update import UpdateReport
from smet.wiring import agree_on_remedies, fragments_of, require_same_kernels, require_served

__all__ = ["MaskMismatchError", "TopologyController"]


class TopologyController:
    """Owns the masks' schedule and the clock of ``store.optimizer``.

    Call ``before_step()`` before a step's first micro-batch and ``after_step()`` after its update. Both may also be
    called around every micro-batch, and around steps that are skipped (``GradScaler``, accumulation in accelerate):
    an update follows a step of the clock once.

    Args:
        model: has ``SparseLinear`` layers.
        config: method and schedule.
        store: fragments of master weights and state.
        bank: serves the masks; sharded over ``store.group``.
        total_steps: length of the run in optimizer steps.
        shard: which tensor-parallel part the layers are.
        shards: of how many.
        tell: says what of the schedule is probably not meant.

    Raises:
        ConfigError: ``total_steps`` is no positive number; ``topology_ranges`` is not a multiple of ``shards``, or does
            not divide a layer; model, store and bank do not belong together; the optimizer was told other remedies than
            ``config`` says; replicas were built differently.
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
        tell: Callable[[str], object] = note,
    ):
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ConfigError(f"total_steps is {shown(total_steps)}, expected the run's number of optimizer steps")
        failure = tell_of_run(config, total_steps, tell)
        self.config, self.store, self.bank, self._tell = config, store, bank, tell
        self.shard, self.shards = shard, shards
        self.ranges = config.topology_ranges if config.topology_ranges > 1 else shards
        self.schedule = TopologySchedule(config, total_steps)
        all_layers = sparse_layers(model)
        self.all_layers = all_layers
        self.layers = {
            name: layer
            for name, layer in all_layers.items()
            if layer.values.requires_grad and (layer.falls or not layer.is_full)
        }
        self._check_ranges()
        dynamic = self.layers if config.dynamic else {}
        require_served(dynamic, bank)
        own = [fragment.range for fragment in fragments_of(dynamic, store).values()]
        agree_on_remedies(config, store.optimizer)
        self._ranges = dict(zip(dynamic, all_ranges(own, store.group), strict=True))
        require_same_kernels(all_layers, bank, store.group)
        self.decider = Decider(config, store.group or store.replicas)
        if self.layers:
            self.decider.require_none_failed(failure, self._device)
        decided = {name: layer.active * self.shards // self.ranges for name, layer in self.layers.items()}
        for line in still_notices(decided, config, total_steps):
            tell(line)
        self.gradients = Gradients(self.decider.needed, store.group, store.replicas, store.mesh)
        """Gradients of the step in progress, if anybody needs them."""
        self.gradients.adopt(store.optimizer.topology.moments, self.layers)
        self._rank = dist.get_rank(store.group) if store.group is not None else 0
        self._ticks: int | None = store.ticks()
        self._known: TopologyPosition | None = None
        store.optimizer.driver = weakref.ref(self)
        if store.optimizer.topology.seen is None:
            store.optimizer.topology.seen = store.optimizer.steps_done
        if store.replicas is not None and not store.optimizer.external_clock:
            require_same_decisions(self._settings(total_steps), store.replicas)

    def _settings(self, total_steps: int) -> dict[str, str]:
        """All that decides when the topology changes and how, beside the weights; to be compared over replicas."""
        return {
            "settings": repr(self.config),
            "total_steps": str(total_steps),
            "the optimizer's clocks": str(self.store.optimizer.steps_done),
            "sparse layers": repr([(name, layer.grid, layer.active) for name, layer in self.layers.items()]),
            "masks": self._all_masks(),
        }

    def _check_ranges(self) -> None:
        found = []
        if self.ranges % self.shards:
            found.append(
                f"topology_ranges is {self.ranges}, expected 1 or a multiple of the {self.shards} tensor-parallel ranks"
            )
        for name, layer in self.layers.items():
            whole = self.config.is_balanced(layer.grid.tile)
            count = layer.grid.shape[0] if whole else layer.grid.tiles
            if not found and count % (self.ranges // self.shards):
                found.append(
                    f"topology_ranges is {self.ranges}, which does not divide the {count} {'rows of ' * whole}tiles "
                    f"of {name}; choose 1 or a divisor"
                )
        if found:
            raise ConfigError(found)

    @property
    def ages(self) -> AgeTable:
        """The optimizer's age table."""
        return self.store.optimizer.ages

    @property
    def updates_done(self) -> int:
        """Number of the last update, counted from 1; it travels with the optimizer's state."""
        position = self.store.optimizer.topology
        if position.updates_done is None:  # a state that was saved before it held the number
            position.updates_done = self.schedule.updates_until(position.seen or 0)
        return position.updates_done

    @property
    def last_code(self) -> int:
        """Birth code of the tiles grown at the last update; 0 before the first."""
        return self.store.optimizer.topology.last_code

    @property
    def density(self) -> float:
        """Density that is open: the settings', or what is counted; ``UpdateReport`` counts it in each layer."""
        return gradual.density_told(self.layers or self.all_layers, self.schedule, self.store.optimizer.steps_done)

    def density_of(self, group: dict[str, Any]) -> float:
        """The same of one of the optimizer's groups whose density falls."""
        members = gradual.members_of(group, self.layers)
        return gradual.open_density(members, self.schedule, self.store.optimizer.steps_done)

    def before_step(self) -> None:
        """Ask the layers for their gradients if a criterion needs those of this step.

        Raises:
            ConfigError: layers were frozen in an engine that would go on moving them.
        """
        self.take_position()
        trained = self._trained()
        if len(trained) < len(self.layers) and not self.store.skips_frozen:
            raise ConfigError(
                f"{min(self.layers.keys() - trained.keys())} was frozen after deepspeed.initialize, whose partitions "
                "still hold it: momentum and weight decay would go on moving it; freeze layers before that"
            )
        if not self.gradients.needed or self.schedule.next_due(self.store.optimizer.steps_done) is None:
            return
        if not self.store.optimizer.external_clock and self.gradients.bytes_held and not self.store.has_gradients():
            self.gradients.stop(self.layers.values())  # of a step that was skipped
        self.gradients.collect(trained.values(), self.schedule.due(self.store.optimizer.steps_done + 1))

    def _trained(self) -> dict[str, SparseLinear]:
        """The layers of the controller that are not frozen now."""
        return {name: layer for name, layer in self.layers.items() if layer.values.requires_grad}

    def after_step(self) -> UpdateReport | None:
        """Advance the clock if the step was applied, and update the topology when that is due.

        Raises:
            ConfigError: the clock has run past an update since the last call, another controller has taken the
                optimizer over, or masks and optimizer state were loaded from different steps.
        """
        self.store.settle()
        self.take_position()
        optimizer, ticks = self.store.optimizer, self.store.ticks()
        stepped, self._ticks = ticks != self._ticks, ticks
        if optimizer.external_clock and stepped and self.store.step_applied():
            optimizer.advance()
        if stepped and self.store.step_applied():
            self.gradients.average(self._trained())
        report = self.update() if self._update_is_due() else None
        for layer in self.all_layers.values():
            layer.values_changed()
        if stepped or not self.gradients.finite():  # else the step goes on: its gradients are still being added up
            self.gradients.stop(self.layers.values())
        return report

    def _update_is_due(self) -> bool:
        """Whether the clock has just come to a step that an update follows. True once per step."""
        position, now = self.store.optimizer.topology, self.store.optimizer.steps_done
        before, position.seen = position.seen, now
        if before is None or before == now:
            return False
        following = self.schedule.next_due(before)
        if following is not None and following < now:
            raise ConfigError(
                f"the optimizer took {now - before} steps since the last after_step(), past the topology update due "
                f"after step {following}; call after_step() after every optimizer step"
            )
        return self.schedule.due(now)

    def take_position(self) -> None:
        """Go on from the place in the schedule that the optimizer holds: it may have been loaded since."""
        optimizer = self.store.optimizer
        if optimizer.driver is None or optimizer.driver() is not self:
            raise ConfigError(
                "another TopologyController was made over this optimizer; keep one, over all layers of the optimizer"
            )
        if self._known is optimizer.topology:
            return
        self.store.settle()
        driven = optimizer.topology.masks != "" or bool(optimizer.topology.updates_done)
        self._require_own_masks()
        self.gradients.adopt(optimizer.topology.moments, self.layers)
        read_closed(self.layers, self.store, self.config.falls, driven)
        follow_density(self.layers, self.store, self.schedule)
        for line in gradual.stays(self.density, self.schedule, optimizer.steps_done):
            self._tell(line)
        self._known = optimizer.topology
        _ = self.updates_done  # now, where the state lacks it: an update that falls due before would be counted as done

    def _all_masks(self) -> str:
        """Digest of all masks, frozen layers' too. Collective where masks are sharded."""
        own = {name: digest(self.bank.bits(layer)) for name, layer in self.all_layers.items() if not layer.is_full}
        self.bank.release()
        return combined_digest(own)

    def _require_own_masks(self) -> None:
        """Compare the masks with those by which the optimizer's state is stored; engines see to that themselves."""
        position = self.store.optimizer.topology
        if self.store.optimizer.external_clock or not self.config.dynamic:
            return
        masks = self._all_masks()
        if position.masks not in ("", masks):
            raise ConfigError(
                "the masks are not those by which the optimizer's state is stored; load the model's and the "
                "optimizer's state of the same step, or begin with a new optimizer"
            )
        position.masks = masks

    @torch.no_grad()
    @during(TOPOLOGY)
    def update(self) -> UpdateReport:
        """One topology update of every layer. Collective over the data-parallel ranks.

        Raises:
            MaskMismatchError: ranks ended with different masks.
        """
        begin = time.perf_counter()
        self.store.settle()
        self._require_own_masks()
        copies.before_topology_changes(self.layers.values())
        step = self.store.optimizer.steps_done
        trained = self._trained()
        if self.store.skips_frozen:
            own = {"the optimizer's clocks": str(step), "frozen layers": repr(sorted(self.layers.keys() - trained))}
            require_same_decisions(own, self.store.replicas)
        fraction = self.decider.fraction(self.schedule, step, self._device) if self.layers else 0.0
        report = UpdateReport(step, self.updates_done + 1, fraction)
        codes = open_codes(self.ages, step, self.config)
        digests = {}
        for name, layer in self.layers.items():
            report.density[name] = layer.open_tiles / layer.grid.tiles
            if name not in trained:  # frozen since: codes that change hands do so here too
                recode(self.store.fragment(layer.values), codes.recode)
                continue
            bits = self._update_layer(name, layer, codes, report)
            digests[name] = layer_digest(layer, bits)
            report.density[name] = layer.open_tiles / layer.grid.tiles
        follow_density(self.layers, self.store, self.schedule)
        self.store.publish()
        position = self.store.optimizer.topology
        position.updates_done, position.last_code = report.update, codes.code
        if position.masks:
            position.masks = self._all_masks()
        report.digest = combined_digest(digests)
        require_same_result(digests, self._whole_state(), self.store.replicas)
        report.seconds = time.perf_counter() - begin
        return report

    @property
    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).values.device

    def _update_layer(self, name: str, layer: SparseLinear, codes: Codes, report: UpdateReport) -> Tensor:
        fragment = self.store.fragment(layer.values)
        bits = self.bank.bits(layer)
        size = layer.grid.tile_size
        master = gather(fragment.master, fragment.range, fragment.total, self.store.group)
        births = gather(fragment.state["birth"], fragment.range, fragment.total, self.store.group)[::size]
        given = self.gradients.given(name, layer)
        if "ages" in self.decider.needed:
            given["ages"] = codes.ages.to(births.device)[births.long()]
        shield = torch.isin(births, births.new_tensor(codes.young)).to(bits.device) if codes.young else None
        own = self.ranges // self.shards
        numbers = range(self.shard * own, (self.shard + 1) * own)
        layout = Stored.of(layer, bits, births)
        sites = self.decider.sites(
            name, layout.open_bits, layer.grid, layout.opened(master.view(-1, size)),
            layout.opened_of(given), numbers, self.updates_done,
        )  # fmt: skip
        room = Room(layer, layout.mask, self.shards, self.schedule, report.step) if layer.falls else None
        change = self.decider.decide(sites, report.fraction, None if shield is None else layout.opened(shield), room)
        report.pruned += sum(len(site.values) for site in sites) - int(change.kept.sum())
        report.grown += change.count
        report.moved[name] = change.count
        report.unmoved += change.unmoved
        report.uneven += change.uneven
        if self.last_code:
            report.recycled += int(((births == self.last_code) & ~change.kept.to(births.device)).sum())
        self._move_state(fragment, change, size, self._ranges[name], codes)
        self.bank.write(layer, change.bits)
        if layer.falls:
            layer.close(change.closed.to(layer.values.device))
        return change.bits

    def _move_state(
        self, fragment: Fragment, change: TopologyChange, size: int, ranges: list[Range], codes: Codes
    ) -> None:
        device = fragment.master.device
        kept = change.kept.repeat_interleave(size).to(device)
        grown = change.grown.repeat_interleave(size).to(device)
        own_grown = grown[fragment.start : fragment.start + fragment.master.numel()]
        recode(fragment, codes.recode)
        vectors = (fragment.master, *fragment.state.values())
        redistribute(vectors, kept, grown, ranges, self._rank, self.store.group)
        fragment.state["birth"][own_grown] = codes.code
        if bool(change.closed.any()):
            own_closed = change.closed.repeat_interleave(size).to(device)
            fragment.state["birth"][own_closed[fragment.start : fragment.start + fragment.master.numel()]] = CLOSED

    def _whole_state(self) -> dict[str, list[Tensor]]:
        """Weights and their state by layer, where every rank has all of them."""
        if self.store.group is not None:
            return {}
        fragments = {name: self.store.fragment(layer.values) for name, layer in self.layers.items()}
        return {name: [part.master, *part.state.values()] for name, part in fragments.items()}

    def mask_digest(self) -> str:
        """Digest of all masks of this rank's layers. Collective where masks are sharded."""
        digests = {name: layer_digest(layer, self.bank.bits(layer)) for name, layer in self.layers.items()}
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
        optimizer = self.store.optimizer
        loaded = optimizer.topology is not self._known  # by the optimizer's own state, which also names the masks
        optimizer.steps_done = state["steps_done"]
        optimizer.topology = TopologyPosition(
            state["updates_done"], state["last_code"], optimizer.topology.masks if loaded else "", state["steps_done"],
            optimizer.topology.moments,
        )  # fmt: skip
        self.ages.load_state_dict(state["ages"])
        self._ticks = None  # an engine may have gone back too
