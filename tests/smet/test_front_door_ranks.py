"""The front door on two ranks: DistributedDataParallel and ZeRO 1, 2 and 3, to the bit as the five objects train."""

from __future__ import annotations

import functools
import tempfile
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import smet
from smet import ConfigError, bank
from tests.distributed import run_ranks
from tests.smet.zero_runs import MICRO_BATCHES, Case, Session, Tiny, batch, build, deepspeed_config

GROWTH = ("random", "gradient")
RESUMED = [
    (1, "momentum", "sharded", True), (2, "gradient", "sharded", False), (3, "random", "sharded", True),
    (3, "gradient", "sharded", False), (2, "random", "replicated", True), (3, "random", "replicated", False),
]  # fmt: skip
"""ZeRO stage, growth, who keeps masks, and whether one attaches before loading."""
RUNS = [(engine, growth) for engine in ("ddp", 1, 2, 3) for growth in GROWTH]


def case_of(stage: int, growth: str) -> Case:
    return Case(stage, settings=(("growth", growth),))


def through_the_door(case: Case, seed: int = 0) -> tuple[nn.Module, smet.AdamW]:
    torch.manual_seed(seed)
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

    def universal() -> None:
        model, optimizer = through_the_door(case)
        config = settings | {"checkpoint": {"load_universal": True}}
        smet.attach(deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0], 10)

    attempts = {
        "the optimizer in the engine": lambda: smet.attach(optimizer, 10),
        "ZeRO's optimizer": lambda: smet.attach(engine.optimizer, 10),
        "replicas": lambda: smet.attach(engine, 10, replicas=None),
        "a step before": step,
        "a universal checkpoint": universal,
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


def resumed(stage: int, growth: str, residency: str, attach_first: bool, folder: str) -> Any:
    """Of DeepSpeed's own checkpoint, with an update due after the next step."""
    import deepspeed

    case = Case(stage, settings=(("growth", growth), ("mask_residency", residency)))
    whole, run = engine_of(case)
    train(whole, 0, 5)
    whole.save_checkpoint(folder)
    losses = train(whole, 5, 8)
    model, optimizer = through_the_door(case, seed=7)
    settings = deepspeed_config(case, dist.get_world_size()) | {"gradient_accumulation_steps": 1}
    again, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    other = smet.attach(again, total_steps=8) if attach_first else None
    again.load_checkpoint(folder)
    if other is None and stage == 3 and residency == "sharded":
        with pytest.raises(ConfigError, match="holds this rank's part of a mask, as it was loaded; call smet.attach"):
            smet.sparse_layers(model)["layers.1.down_proj"].packed_mask()
    other = other or smet.attach(again, total_steps=8)
    return losses, train(again, 5, 8), run.topology.mask_digest(), other.topology.mask_digest()


def shared_out(folder: str) -> dict[str, Any]:
    """What becomes of state dicts where ranks share the masks out, and of such that lack them."""
    engine, run = engine_of(case_of(2, "random"))
    name, layer = next(iter(run.topology.layers.items()))
    own, whole = layer.packed_mask().clone(), engine.module.state_dict()
    found: dict[str, Any] = {"equal": torch.equal(whole[f"{name}.mask"], own), "at rest": layer.mask}
    del whole[f"{name}.mask"]
    found["without"] = refusal(lambda: engine.module.load_state_dict(whole))
    found["unlike"] = refusal(
        lambda: engine.module.load_state_dict(engine_of(case_of(3, "random"))[0].module.state_dict())
    )
    bank.PATIENCE = timedelta(seconds=1)
    if dist.get_rank() == 0:
        found["alone"] = refusal(engine.module.state_dict)
    else:
        time.sleep(2)  # where it was left alone
    return found


def refusal(attempt: Any) -> str:
    try:
        attempt()
    except (ConfigError, RuntimeError) as error:
        return str(error)
    return ""


def session(folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for engine, growth in RUNS:
        if isinstance(engine, int):
            found[engine, growth] = zero_by_hand(engine, growth), zero_by_the_door(engine, growth)
        else:
            found[engine, growth] = ddp(growth, door=False), ddp(growth, door=True)
    for stage in (2, 3):
        found["refused", stage] = refused(stage)
    for number, case in enumerate(RESUMED):
        found[case] = resumed(*case, f"{folder}/{number}")
    found["shared out"] = shared_out(folder)  # last: a rank that was left alone has broken the group
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
        optimizer, zero, replicas, step, universal = rank["refused", stage]
        assert optimizer.startswith(
            "the optimizer does not hold the model's parameters; where an engine runs it, attach"
        )
        assert "DeepSpeedZeroOptimizer" in zero and "expected a smet.AdamW or a DeepSpeed engine" in zero
        assert replicas.startswith("replicas is given with a DeepSpeed engine")
        assert "DeepSpeed's universal format has no ages of regrown weights; take it out" in universal
        assert step.startswith("an engine runs this optimizer; call smet.attach(engine, total_steps) before its first")


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_deepspeeds_own_checkpoint_resumes_bit_for_bit(case: Any) -> None:
    """Also where ranks share the masks out, and where it is loaded before anybody attached."""
    for rank in results():
        losses, again, digest, other = rank[case]
        assert (losses, digest) == (again, other)


def test_state_dicts_are_whole_where_ranks_share_the_masks_out() -> None:
    found = [rank["shared out"] for rank in results()]
    for rank in found:
        assert rank["equal"] and rank["at rest"] is None
        assert "the state has the values of" in rank["without"] and "and no mask, which tells what" in rank["without"]
        assert "has 0 values in the state" in rank["unlike"]
    assert found[0]["alone"].startswith(
        "not all of the 2 ranks that share the masks out asked for the model's state dict"
    )
