"""What the ranks of the tests of ``fully_shard`` do: a plain loop, as users write it, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import smet
from smet.bank import bucket_key
from smet.dtensors import own
from smet.memory import Part, measure, plan
from smet.optim.front import ModelOptimizer
from tests.smet.zero_runs import Case, Tiny, batch

WHOLE = StateDictOptions(full_state_dict=True)


@dataclass(frozen=True)
class Length:
    """Of a run, in steps."""

    steps: int
    interval: int

    @property
    def half(self) -> int:
        """Where it is saved."""
        return self.steps // 2

    @property
    def early(self) -> int:
        """As far as rounding lets one process and two decide alike: past the second update."""
        return 2 * self.interval + 2


SHORT, LONG = Length(16, 4), Length(60, 10)
KINDS: dict[str, dict[str, Any]] = {
    "smet": {"method": "smet"},
    "smet-rigl": {"method": "smet-rigl"},
    "momentum, masks whole": {"growth": "momentum", "mask_residency": "replicated"},
    "falling": {"initial_density": 0.5, "density_end_fraction": 0.8, "block": (2, 4)},
}


class Loop:
    """The lines of a user: on all ranks by ``fully_shard``, or the same training in one process."""

    def __init__(
        self,
        settings: dict[str, Any],
        length: Length = SHORT,
        seed: int = 0,
        cut: bool = True,
        half: bool = False,
        formula: str = "adamw",
        policy: MixedPrecisionPolicy | None = None,
        checkpointing: bool = False,
        keep: bool = False,
        ddp: bool = False,
    ):
        config = Case(0, settings=(("update_interval", length.interval), *settings.items())).config()
        torch.manual_seed(seed)
        self.model: Any = Tiny(checkpointing)
        smet.sparsify(self.model, config, quiet=True)
        if half:
            self.model.bfloat16()
        self.alone = not cut and not ddp
        self.called = DistributedDataParallel(self.model) if ddp else self.model
        if cut:
            shard(self.model, mp_policy=policy or MixedPrecisionPolicy(), reshard_after_forward=False if keep else None)
            self.model.set_reshard_after_backward(not keep)
        self.optimizer: ModelOptimizer = (
            smet.AdamW(self.model, lr=5e-3, weight_decay=0.05)
            if formula == "adamw"
            else ModelOptimizer(self.model, formula, 1e-3)
        )
        self.digests: list[str] = []
        self.run = smet.attach(
            self.optimizer,
            length.steps,
            lambda report: self.digests.append(report.digest),
            None if self.alone else "all",
        )

    def loss(self, step: int, micro: int = 0) -> Tensor:
        """Of this rank's rows; of all where it trains alone."""
        parts = batch(step, micro)
        if not self.alone:
            parts = tuple(part.chunk(dist.get_world_size())[dist.get_rank()] for part in parts)  # type: ignore[assignment]
        return self.called(*parts)  # type: ignore[no-any-return]

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            loss = self.loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def whole(self) -> dict[str, Any]:
        """What all ranks have together, as numbers; collective."""
        model = get_model_state_dict(self.model, options=WHOLE)
        state = get_optimizer_state_dict(self.model, self.optimizer, options=WHOLE)
        return {"model": plain(model), "state": plain(state["state"]), "smet": plain(state["param_groups"][0]["smet"])}

    def parts(self) -> dict[str, Tensor]:
        """This rank's own."""
        self.run.topology.store.settle()
        found = {name: own(param).clone() for name, param in self.model.named_parameters()}
        for name, param in self.model.named_parameters():
            for key, value in self.optimizer.state[param].items() if param.requires_grad else ():
                found[f"{name} {key}"] = own(value).clone()
        return found | {f"mean {name}": own(mean).clone() for name, mean in self.optimizer.topology.moments.items()}

    def clock(self) -> dict[str, Any]:
        position = replace(self.optimizer.topology, moments={})
        return {"position": vars(position), "births": self.optimizer.ages.births, "steps": self.optimizer.steps_done}


def shard(model: nn.Module, **options: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*model.layers, model):  # type: ignore[misc]
        fully_shard(module, mesh=mesh, **options)
        module.set_force_sum_reduction_for_comms(True)  # in some releases gloo's averages of gradients are sums


def plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.detach().clone() if isinstance(state, Tensor) else state


def evaluated(loop: Loop) -> float:
    """Loss of all rows of one batch, on every rank, as a forward pass without a backward one."""
    loop.model.eval()
    with torch.no_grad():
        loss = float(loop.model(*batch(1000, 0)))
    loop.model.train()
    return loss


def states(loop: Loop) -> dict[str, Any]:
    return dict(zip(("model", "optimizer"), get_state_dict(loop.model, loop.optimizer), strict=True))


def save(loop: Loop, folder: Path) -> None:
    dcp.save(states(loop), checkpoint_id=folder)


def load(loop: Loop, folder: Path, **options: Any) -> None:
    state = states(loop)
    dcp.load(state, checkpoint_id=folder, **options)
    set_state_dict(loop.model, loop.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def straight(settings: dict[str, Any], length: Length) -> dict[str, Any]:
    """The whole run; beside it one process as far as rounding lets both decide alike; and what bytes there are."""
    loop, alone = Loop(settings, length), Loop(settings, length, cut=False)
    losses = loop.train(0, length.early)
    ours, theirs = loop.whole(), alone
    single = theirs.train(0, length.early)
    found = {"early": ours, "alone": theirs.whole(), "masks": (list(loop.digests), list(theirs.digests))}
    means = torch.tensor(losses)
    dist.all_reduce(means)
    found["losses"] = ((means / dist.get_world_size()).tolist(), single)
    losses += loop.train(length.early, length.steps)
    return {**found, "digests": loop.digests, "parts": loop.parts(), "clock": loop.clock(), "all losses": losses}


def resumed(settings: dict[str, Any], length: Length, folder: Path) -> dict[str, Any]:
    """Half of the run, saved by torch's distributed checkpoint; the rest goes on in another model."""
    first, second = Loop(settings, length), Loop(settings, length, seed=7)
    losses = first.train(0, length.half)
    evaluated(first)
    save(first, folder)
    evaluated(second)  # leaves parameters whole
    load(second, folder)
    losses += second.train(length.half, length.steps)
    digests = first.digests + second.digests
    return {"parts": second.parts(), "clock": second.clock(), "all losses": losses, "digests": digests}


def exchanged(settings: dict[str, Any], length: Length, folder: Path) -> dict[str, Any]:
    """From ``fully_shard`` to one process by a whole state and by the files of ``resumed``; and the other way round."""
    loop, alone, by_files = (
        Loop(settings, length),
        Loop(settings, length, seed=3, cut=False),
        Loop(settings, length, seed=4, cut=False),
    )
    loop.train(0, length.half)
    trained = loop.whole()
    set_model_state_dict(alone.model, get_model_state_dict(loop.model, options=WHOLE))
    set_optimizer_state_dict(
        alone.model, alone.optimizer, get_optimizer_state_dict(loop.model, loop.optimizer, options=WHOLE)
    )
    plain_model = smet.sparsify(Tiny(), Case(0, settings=tuple(settings.items())).config(), quiet=True).model
    plain_model.load_state_dict(trained["model"])
    with torch.no_grad():
        losses = [evaluated(loop), evaluated(alone), float(plain_model(*batch(1000, 0)))]
    load(by_files, folder, no_dist=True)
    back = Loop(settings, length, seed=5)
    set_model_state_dict(back.model, get_model_state_dict(alone.model), options=WHOLE)
    set_optimizer_state_dict(
        back.model, back.optimizer, get_optimizer_state_dict(alone.model, alone.optimizer), options=WHOLE
    )
    found = {"losses": losses, "trained": trained, "alone": alone.whole(), "by files": by_files.whole()}
    parts = [loop.parts(), back.parts()]
    loop.train(length.half, length.half + length.interval + 1)
    back.train(length.half, length.half + length.interval + 1)
    return {**found, "there and back": [*parts, loop.parts(), back.parts()]}


def by_two(folder: Path) -> dict[str, Any]:
    """Half of a run, saved; DistributedDataParallel goes on with it, and ``fully_shard`` with what that has saved."""
    settings = KINDS["momentum, masks whole"]
    loop, replicas, back = Loop(settings), Loop(settings, seed=8, cut=False, ddp=True), Loop(settings, seed=9)
    loop.train(0, SHORT.half)
    save(loop, folder)
    load(replicas, folder)
    found = {"saved": loop.whole(), "replicas": replicas.whole()}
    replicas.train(SHORT.half, SHORT.half + SHORT.interval + 1)
    save(replicas, folder / "replicas")
    load(back, folder / "replicas")
    return {**found, "later": replicas.whole(), "back": back.whole()}


def by_three(folder: Path) -> dict[str, Any]:
    """The rest of it on ranks that cut everything elsewhere."""
    loop = Loop(KINDS["momentum, masks whole"], seed=7)
    load(loop, folder)
    loaded = loop.whole()
    loop.train(SHORT.half, SHORT.steps)
    lengths = {name: part.numel() for name, part in loop.parts().items()}
    return {"loaded": loaded, "lengths": lengths, "digests": loop.digests, "whole": loop.whole()}


def accumulated(settings: dict[str, Any], sync: bool, skip: bool, cut: bool = True) -> dict[str, Tensor]:
    """Two micro-batches to a step; the first may be kept from being summed over ranks; steps may be left out."""
    loop = Loop(settings, Length(60, 2), cut=cut)
    model: Any = loop.model
    for step in range(6):
        for micro in range(2):
            if cut:
                model.set_requires_gradient_sync(sync or micro == 1)
            (loop.loss(step, micro) / 2).backward()
        if not (skip and step in (1, 3)):
            loop.optimizer.step()
        loop.optimizer.zero_grad()
    return {**loop.parts(), "digests": torch.tensor([list(bytes.fromhex(digest)) for digest in loop.digests])}


def one_rank_differs() -> dict[str, Any]:
    """Steps and masks where one rank's gradient overflows; and what is said of gradients that only some ranks have."""
    loop, clock, said = Loop({"method": "smet-rigl"}), [], []
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
    for step in range(6):
        scaler.scale(loop.loss(step)).backward()
        if step == 3 and dist.get_rank() == 1:
            gradient = loop.model.get_submodule("layers.0.up_proj").values.grad
            assert isinstance(gradient, Tensor)
            own(gradient)[0] = float("inf")
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        clock.append(loop.optimizer.steps_done)
    loop.loss(7).backward()
    for rank in (1, 0):
        if dist.get_rank() == rank:
            loop.optimizer.zero_grad()
        said.append(loop.run.topology.store.has_gradients())
    return {"clock": clock, "digests": loop.digests, "said": said}


def by_dense_adamw() -> tuple[list[float], list[float]]:
    """Losses at density 1, and of torch's own layers and optimizer."""
    ours = Loop({"density": 1.0})
    torch.manual_seed(0)
    model = Tiny()
    shard(model)
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [{"params": [p for p in params if p.dim() > 1], "weight_decay": 0.05},
              {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer, losses = torch.optim.AdamW(groups, lr=5e-3), []
    for step in range(8):
        loss = model(*(part.chunk(dist.get_world_size())[dist.get_rank()] for part in batch(step, 0)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return ours.train(0, 8), losses


def bytes_at_rest(half: bool) -> dict[str, Any]:
    """When the last backward of a step is done: what is held, planned, and what dense layers would take."""
    loop = Loop({"mask_residency": "sharded"}, half=half)
    loop.train(0, 2)
    loop.loss(2).backward()
    topology = loop.run.topology
    topology.bank.release()
    held = measure(topology.store, topology.bank, topology.all_layers)
    ranks, parts = dist.get_world_size(), {"sparse": list[Any](), "dense": list[Any]()}
    for group in loop.optimizer.param_groups:
        lengths = tuple(param.numel() for param in group["params"])
        parts["sparse" if group["name"].startswith("sparse") else "dense"].append((lengths, group["aged"]))
    buckets: dict[str, int] = {}
    for name, layer in topology.all_layers.items():
        buckets[bucket_key(name)] = buckets.get(bucket_key(name), 0) + layer.grid.mask_bytes
    planned = {
        part: plan(
            Part(groups=tuple(groups), buckets=tuple(buckets.values()) if part == "sparse" else ()),
            0, ranks, half, fully_sharded=True,
        )
        for part, groups in parts.items()
    }  # fmt: skip
    sizes = tuple(layer.grid.rows * layer.grid.cols for layer in topology.layers.values())
    dense = plan(Part(groups=((sizes, False),)), 0, ranks, half, fully_sharded=True)
    return {"held": held, "planned": planned, "dense": dense}


def precise(**options: Any) -> dict[str, Any]:
    """A run in less precision: what ranks hold, and their losses."""
    loop = Loop({"method": "smet-rigl"}, **options)
    losses = loop.train(0, SHORT.interval + 3)
    dtypes = {kind: str(tensor.dtype) for kind, group, tensor in loop.run.topology.store.live_tensors()}
    return {"losses": losses, "digests": loop.digests, "dtypes": dtypes, "masks": loop.run.topology.mask_digest()}


def refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (smet.ConfigError, RuntimeError) as error:
        return str(error)
    return ""
