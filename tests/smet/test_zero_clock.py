"""Time under an engine: calls that are no steps, steps that are skipped, ranks that disagree; traffic; switches."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from smet.controller import MaskMismatchError
from smet.mask import pack, unpack
from tests.distributed import run_ranks
from tests.smet.zero_runs import Case, Session, batch, blocks_that_differ, build, deepspeed_config, run_cases

STAGES = (1, 2, 3)
PLAIN = {stage: Case(stage) for stage in STAGES}
SWITCHES = {
    "replicated masks": {"settings": (("mask_residency", "replicated"),)},
    "kept dense weights": {"settings": (("weight_residency", "dense"),)},
    "activation checkpointing": {"checkpointing": True},
    "kept dense weights, checkpointing": {"settings": (("weight_residency", "dense"),), "checkpointing": True},
}


def step_before_start(stage: int) -> dict[str, Any]:
    """A whole engine step before the store has started the clock, and one after."""
    import deepspeed

    from smet.zero import ZeroStore

    model, optimizer = build(Case(stage))
    settings = deepspeed_config(Case(stage), dist.get_world_size())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    zero = engine.optimizer
    flats = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups

    def engine_step() -> bool:
        before = [flat.detach().clone() for flat in flats]
        for micro in range(2):
            tokens, targets = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch(0, micro))
            engine.backward(engine(tokens, targets))
            engine.step()
        return any(not torch.equal(flat, old) for flat, old in zip(flats, before, strict=True))

    changed = engine_step()
    early = (changed, optimizer.steps_done, sum(len(state) for state in optimizer.state.values()))
    state = ZeroStore(engine).fragment(model.layers[0].up_proj.values).state
    fresh = {key: float(value.double().abs().sum()) for key, value in state.items()}
    return {"early": early, "fresh": fresh, "running": (engine_step(), optimizer.steps_done)}


def skipped_step(stage: int) -> dict[str, Any]:
    """A run in which one rank's gradient overflows in the very step that a topology update should follow."""
    session = Session(Case(stage, snapshots=True))
    values = session.layers["layers.1.down_proj"].values
    poisoned = {"step": 3, "now": False}

    def poison(step: int) -> None:
        poisoned["now"] = step == poisoned["step"] and session.rank == session.ranks - 1

    def plant(gradient: Tensor) -> Tensor:
        if poisoned["now"]:
            gradient = gradient.clone()
            gradient[-1] = float("inf")
        return gradient

    values.register_hook(plant)
    session.poison = poison
    clock, applied, digests = [], [], []
    for step in range(7):
        session.step(step)
        assert session.controller.after_step() is None, "called twice: the engine took one step"
        clock.append(session.optimizer.steps_done)
        applied.append(session.store.step_applied())
        digests.append(session.controller.mask_digest())
    return {**session.summary(), "clock": clock, "applied": applied, "live": digests, "reports": session.reports}


def diverging_masks() -> str:
    """One rank's mask is another one before an update."""
    session = Session(Case(2, settings=(("mask_residency", "replicated"),)))
    layer = session.layers["layers.0.mix"]
    if session.rank == 1:
        mask = unpack(layer.mask, layer.grid.tiles)
        layer.mask.copy_(pack(mask.roll(1)))
    try:
        session.controller.update()
    except MaskMismatchError as error:
        return str(error)
    return ""


def sixteen_bit_resident_bytes() -> dict[str, int]:
    """Bytes at rest of the sparse layers by kind, from the live tensors of ZeRO-2 in bf16."""
    session = Session(Case(2, precision="bf16")).train()
    session.bank.release()
    found: dict[str, int] = {"masks": sum(t.numel() for t in session.bank.tensors())}
    for kind, group, tensor in session.store.live_tensors():
        if group.startswith("sparse"):
            found[kind] = found.get(kind, 0) + tensor.numel() * tensor.element_size()
    return found


def collectives_of_smet(stage: int) -> list[dict[str, int]]:
    """How often smet itself (not DeepSpeed) starts each collective, step by step."""
    from smet import bank

    session = Session(Case(stage))
    counts: list[dict[str, int]] = []
    names = ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list", "all_to_all_single")
    originals: dict[Any, dict[str, Any]] = {dist: {name: getattr(dist, name) for name in names}}
    originals[bank] = {"all_gather_flat": bank.all_gather_flat}

    def counted(name: str, original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("smet."):
                counts[-1][name] = counts[-1].get(name, 0) + 1
            return original(*args, **options)

        return call

    for module, functions in originals.items():
        for name, original in functions.items():
            setattr(module, name, counted(name, original))
    try:
        for step in range(3):
            counts.append({})
            session.step(step)
    finally:
        for module, functions in originals.items():
            for name, original in functions.items():
                setattr(module, name, original)
    return counts


def everything() -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for stage in STAGES:
        found["start", stage] = step_before_start(stage)
        found["skip", stage] = skipped_step(stage)
        found["traffic", stage] = collectives_of_smet(stage)
    found["diverge"] = diverging_masks()
    found["bytes"] = sixteen_bit_resident_bytes()
    cases = [Case(stage, **switch) for stage in (2, 3) for switch in SWITCHES.values()]
    return {**found, **run_cases([*cases, *PLAIN.values()])}


@functools.cache
def results() -> list[dict[Any, Any]]:
    return run_ranks(everything, 2, timeout=600)


@pytest.mark.parametrize("stage", STAGES)
def test_an_optimizer_call_before_the_start_changes_nothing_and_is_no_step(stage: int) -> None:
    for result in results():
        found = result["start", stage]
        assert found["early"] == (False, 0, 0)
        assert found["fresh"] == {"exp_avg": 0.0, "exp_avg_sq": 0.0, "birth": 0.0}
        assert found["running"] == (True, 0), "after the start it moves weights, but only advance() moves time"


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_one_rank_overflows_is_skipped_by_all_with_its_update(stage: int) -> None:
    for result in results():
        run = result["skip", stage]
        assert run["applied"] == [True, True, True, False, True, True, True]
        assert run["clock"] == [1, 2, 3, 3, 4, 5, 6]
        assert [report["step"] for report in run["reports"]] == [2, 4, 6]
        assert run["live"][1] == run["live"][2] == run["live"][3] != run["live"][4], "the update follows a step later"
        assert run["live"] == results()[0]["skip", stage]["live"]
        before, after = run["snapshots"][3]
        previous = run["snapshots"][2][1]
        for name in previous:
            if name == "steps":
                assert previous[name] == before[name] == after[name]
                continue
            for key, value in previous[name].items():
                for snapshot in (before, after):
                    assert (value == snapshot[name][key]).all(), (name, key)


def test_ranks_whose_masks_differ_all_stop() -> None:
    assert all("mask of layers.0.mix differ over the 2 ranks" in result["diverge"] for result in results())


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("switch", SWITCHES)
def test_memory_switches_change_no_result(switch: str, stage: int) -> None:
    for result in results():
        run, plain = result[Case(stage, **SWITCHES[switch])], result[PLAIN[stage]]
        assert run["losses"] == plain["losses"]
        assert run["digests"] == plain["digests"]
        assert blocks_that_differ(run["masks"], plain["masks"])[0] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_paper_pitfall_steps_between_updates_send_masks_by_the_bucket_and_nothing_else(stage: int) -> None:
    """Three decoder layers, two micro-batches, forward and backward: no collective per layer, no indices."""
    for result in results():
        first, updating, third = result["traffic", stage]
        for quiet in (first, third):
            assert set(quiet) == {"all_gather_flat"}
            assert quiet["all_gather_flat"] <= 2 * (2 * 3 - 1)
        assert updating["all_reduce"] > 0, "the count sees what it should see"


def test_paper_pitfall_state_at_rest_is_active_entries_alone() -> None:
    """Two ranks, ZeRO-2, bf16, d = 0.23: whole weights, and half of everything else; masks 1 bit per block."""
    weights = 2 * 32 * (48 + 64 + 80) + 32 * 32
    active = 3062
    totals = [result["bytes"] for result in results()]
    for kind, size in {"master": 4, "moments": 8, "ages": 1}.items():
        assert sum(total[kind] for total in totals) == pytest.approx(size * active, abs=8 * size), kind
    assert all(total["weights"] == pytest.approx(2 * active, abs=8) for total in totals)
    frozen = 32 * 32
    assert sum(total["masks"] for total in totals) == pytest.approx((weights + frozen) / 8, abs=8)
    dense = 2 * weights + (4 + 8) * weights / 2
    assert all(sum(total.values()) < 0.27 * dense for total in totals)
