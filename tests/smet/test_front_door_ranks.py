"""The front door on two ranks: DistributedDataParallel and ZeRO 1, 2 and 3, to the bit as the five objects train."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import smet
from smet import ConfigError
from tests.distributed import run_ranks
from tests.smet.zero_runs import MICRO_BATCHES, Case, Session, Tiny, batch, build, deepspeed_config

GROWTH = ("random", "gradient")
RUNS = [(engine, growth) for engine in ("ddp", 1, 2, 3) for growth in GROWTH]


def case_of(stage: int, growth: str) -> Case:
    return Case(stage, settings=(("growth", growth),))


def through_the_door(case: Case) -> tuple[nn.Module, smet.AdamW]:
    torch.manual_seed(0)
    model = Tiny()
    smet.sparsify(model, case.config(), quiet=True)
    return model, smet.AdamW(model, lr=5e-3, weight_decay=0.05)


def own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(dist.get_world_size())[dist.get_rank()] for tensor in tensors)


def state_of(model: nn.Module, store: Any) -> dict[str, Tensor]:
    """This rank's fragments of everything that a topology update moves, and the masks."""
    found = {}
    for name, layer in smet.sparse_layers(model).items():
        if layer.values.requires_grad:
            fragment = store.fragment(layer.values)
            found[f"{name} master"] = fragment.master.clone()
            found |= {f"{name} {key}": value.clone() for key, value in fragment.state.items()}
    return found


def summary(losses: list[float], model: nn.Module, topology: smet.TopologyController) -> dict[str, Any]:
    optimizer = topology.store.optimizer
    return {
        "losses": losses,
        "masks": topology.mask_digest(),
        "updates": topology.updates_done,
        "steps": optimizer.steps_done,
        "births": optimizer.ages.births,
        "state": state_of(model, topology.store),
    }


def ddp(growth: str, door: bool) -> dict[str, Any]:
    """Accumulation over two micro-batches, the first without communication; the fourth step is left out."""
    case = case_of(0, growth)
    model, optimizer = through_the_door(case) if door else build(case)
    wrapped = DistributedDataParallel(model)
    if isinstance(optimizer, smet.AdamW):
        topology = smet.attach(optimizer, case.steps).topology
    else:
        store, bank = smet.LocalStore(optimizer), smet.MaskBank(model)
        topology = smet.TopologyController(model, case.config(), store, bank, case.steps)
    losses = []
    for step in range(case.steps):
        for micro in range(MICRO_BATCHES):
            if not door:
                topology.before_step()
            last = micro == MICRO_BATCHES - 1
            wrapped.require_backward_grad_sync = last
            loss = wrapped(*own(batch(step, micro)))
            (loss / MICRO_BATCHES).backward()
            losses.append(loss.item())
            if last and step != 3:
                optimizer.step()
            if not door:
                topology.after_step()
        optimizer.zero_grad()
    return summary(losses, model, topology)


def overflow(model: nn.Module, now: dict[str, int]) -> None:
    """One rank's gradient overflows in the step that the second update should follow: the engine leaves it out."""

    def plant(gradient: Tensor) -> Tensor:
        if now["step"] == 3 and dist.get_rank() == 1:
            gradient = gradient.clone()
            gradient[-1] = float("inf")
        return gradient

    layer = model.get_submodule("layers.1.down_proj")
    assert isinstance(layer, smet.SparseLinear)
    layer.values.register_hook(plant)


def zero_by_hand(stage: int, growth: str) -> dict[str, Any]:
    session, losses, now = Session(case_of(stage, growth)), list[float](), dict[str, int]()
    overflow(session.model, now)
    for step in range(session.case.steps):
        now["step"] = step
        session.controller.before_step()
        losses += [session.micro_batch(step, micro) for micro in range(MICRO_BATCHES)]
        session.controller.after_step()
    return summary(losses, session.model, session.controller)


def zero_by_the_door(stage: int, growth: str) -> dict[str, Any]:
    import deepspeed

    case = case_of(stage, growth)
    model, optimizer = through_the_door(case)
    settings = deepspeed_config(case, dist.get_world_size())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    run = smet.attach(engine, total_steps=case.steps)
    losses, now = list[float](), dict[str, int]()
    overflow(model, now)
    for step in range(case.steps):
        now["step"] = step
        for micro in range(MICRO_BATCHES):
            loss = engine(*own(batch(step, micro)))
            engine.backward(loss)
            engine.step()
            losses.append(float(loss.item()))
    return summary(losses, model, run.topology)


def refused(stage: int) -> list[str]:
    """What an engine's user may do wrong."""
    import deepspeed

    case = case_of(stage, "random")
    model, optimizer = through_the_door(case)
    settings = deepspeed_config(case, dist.get_world_size()) | {"gradient_accumulation_steps": 1}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def step() -> None:
        engine.backward(engine(*own(batch(0, 0))))
        engine.step()

    attempts = {
        "the optimizer in the engine": lambda: smet.attach(optimizer, 10),
        "ZeRO's optimizer": lambda: smet.attach(engine.optimizer, 10),
        "replicas": lambda: smet.attach(engine, 10, replicas=None),
        "a step before": step,
    }
    said = []
    for attempt in attempts.values():
        try:
            attempt()
            said.append("")
        except ConfigError as error:
            said.append(str(error))
    return said


def engine_of(case: Case) -> tuple[Any, smet.Run]:
    import deepspeed

    model, optimizer = through_the_door(case)
    settings = deepspeed_config(case, dist.get_world_size()) | {"gradient_accumulation_steps": 1}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine, smet.attach(engine, total_steps=8)


def train(engine: Any, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        loss = engine(*own(batch(step, 0)))
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.item()))
    return losses


def resumed(stage: int, growth: str, folder: str) -> Any:
    """Of DeepSpeed's own checkpoint, with an update due after the next step; then what is said of sharded masks."""
    case = Case(stage, settings=(("growth", growth), ("mask_residency", "replicated")))
    whole, run = engine_of(case)
    losses = train(whole, 0, 5)
    whole.save_checkpoint(folder)
    losses = train(whole, 5, 8)
    again, other = engine_of(case)
    again.load_checkpoint(folder)
    found = losses, train(again, 5, 8), run.topology.mask_digest(), other.topology.mask_digest()
    sharded, _ = engine_of(case_of(stage, growth))
    with pytest.raises(ConfigError, match="lack; to save by these, make .* mask_residency='replicated'"):
        sharded.module.state_dict()
    return found


def session(folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for engine, growth in RUNS:
        if isinstance(engine, int):
            found[engine, growth] = zero_by_hand(engine, growth), zero_by_the_door(engine, growth)
        else:
            found[engine, growth] = ddp(growth, door=False), ddp(growth, door=True)
    for stage, growth in ((2, "gradient"), (3, "random")):
        found["refused", stage] = refused(stage)
        found["resumed", stage] = resumed(stage, growth, f"{folder}/{stage}")
    found["resumed", 1] = resumed(1, "momentum", f"{folder}/1")
    return found


@functools.cache
def results() -> list[dict[Any, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(session, 2, folder, timeout=240)


@pytest.mark.parametrize("engine, growth", RUNS)
def test_every_rank_ends_bit_for_bit_where_the_five_objects_end(engine: Any, growth: str) -> None:
    for rank in results():
        hand, door = rank[engine, growth]
        assert (door["steps"], door["updates"]) == (6, 3), "of seven steps one is left out"
        ours, theirs = hand.pop("state"), door.pop("state")
        assert hand == door
        assert ours.keys() == theirs.keys() and len(ours) > 20
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("growth", GROWTH)
def test_ranks_of_ddp_end_with_one_model(growth: str) -> None:
    first, second = (rank["ddp", growth][1]["masks"] for rank in results())
    assert first == second


@pytest.mark.parametrize("stage", [2, 3])
def test_an_engine_is_what_is_attached_to(stage: int) -> None:
    for rank in results():
        optimizer, zero, replicas, step = rank["refused", stage]
        assert optimizer.startswith(
            "the optimizer does not hold the model's parameters; where an engine runs it, attach"
        )
        assert "DeepSpeedZeroOptimizer" in zero and "expected a smet.AdamW or a DeepSpeed engine" in zero
        assert replicas.startswith("replicas is given with a DeepSpeed engine")
        assert step.startswith("an engine runs this optimizer; call smet.attach(engine, total_steps) before its first")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_checkpoint_of_replicated_masks_resumes_bit_for_bit(stage: int) -> None:
    for rank in results():
        losses, again, digest, other = rank["resumed", stage]
        assert (losses, digest) == (again, other)
