"""The front door in accelerate's wrappers, in one process and in two: to the bit as the five objects train there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import smet
from tests.distributed import run_ranks

STEPS, MICRO_BATCHES = 12, 3
CASES = [("random", "no"), ("gradient", "no"), ("gradient", "bf16")]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))


def train(growth: str, precision: str, door: bool) -> dict[str, Any]:
    """Three micro-batches to a step; a scheduler beside the optimizer; the whole loop is accelerate's."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it keeps the first precision
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_BATCHES, mixed_precision=precision)
    config = smet.SmetConfig(density=0.25, update_interval=4, warmup_steps=3, stop_fraction=1.0, growth=growth)
    inner = net()
    smet.sparsify(inner, config, quiet=True)
    optimizer = smet.AdamW(inner, lr=1e-2) if door else smet.SmetAdamW(smet.parameter_groups(inner, config), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    model, wrapped, scheduler = accelerator.prepare(inner, optimizer, schedule)
    if door:
        topology = smet.attach(wrapped, total_steps=STEPS).topology
    else:
        store, bank = smet.LocalStore(optimizer), smet.MaskBank(inner)
        topology = smet.TopologyController(inner, config, store, bank, total_steps=STEPS)
    losses = []
    for number in range(STEPS * MICRO_BATCHES):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * accelerator.process_index + number))
        if not door:
            topology.before_step()
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), x)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            wrapped.step()
            scheduler.step()
            wrapped.zero_grad()
        losses.append(loss.item())
        if not door:
            topology.after_step()
    accelerator.free_memory()
    return {
        "losses": losses,
        "masks": topology.mask_digest(),
        "clock": (optimizer.steps_done, topology.updates_done, optimizer.ages.births),
        "ranks": accelerator.num_processes,
        "model": {key: value.clone() for key, value in inner.state_dict().items()},
        "state": [{key: value.clone() for key, value in entry.items()} for entry in optimizer.state.values()],
    }


def prepared(kind: str, seed: int) -> tuple[Any, Any, Any, smet.Run]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    AcceleratorState._reset_state(reset_partial_state=True)
    if kind == "ddp":
        accelerator = Accelerator(cpu=True)
    else:
        config = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": int(kind[-1])}}
        plugin = DeepSpeedPlugin(hf_ds_config=config)
        accelerator = Accelerator(
            deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")]
        )  # fmt: skip
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    smet.sparsify(inner, density=0.25, update_interval=4, warmup_steps=3, stop_fraction=1.0, quiet=True)
    model, optimizer = accelerator.prepare(inner, smet.AdamW(inner, lr=1e-2))
    run = smet.attach(optimizer if kind == "ddp" else model, total_steps=STEPS)
    return accelerator, model, optimizer, run


def go_on(parts: tuple[Any, Any, Any, smet.Run], first: int, last: int) -> list[float]:
    accelerator, model, optimizer, _ = parts
    losses = []
    for number in range(first, last):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * accelerator.process_index + number))
        loss = nn.functional.mse_loss(model(x), x)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def resumed(kind: str, folder: str) -> tuple[Any, Any]:
    whole = prepared(kind, 0)
    go_on(whole, 0, 7)
    whole[0].save_state(folder)
    losses = go_on(whole, 7, STEPS)
    again = prepared(kind, 7)
    again[0].load_state(folder)
    return tuple((lost, parts[3].topology.mask_digest(), parts[3].updates_done)
                 for lost, parts in ((losses, whole), (go_on(again, 7, STEPS), again)))  # fmt: skip


def resumptions(folder: str) -> dict[str, tuple[Any, Any]]:
    found = {kind: resumed(kind, f"{folder}/{kind}") for kind in ("ddp", "zero-2", "zero-3")}
    os.environ.pop("ACCELERATE_USE_DEEPSPEED")
    return found


def test_save_state_and_load_state_go_on_bit_for_bit(tmp_path: Path) -> None:
    for rank in run_ranks(resumptions, 2, str(tmp_path)):
        for kind, (whole, again) in rank.items():
            assert whole == again and whole[2] == 3, kind


def session() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(train(*case, door=False), train(*case, door=True)) for case in CASES]


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_ends_bit_for_bit_where_the_five_objects_end(ranks: int) -> None:
    found = run_ranks(session, ranks)
    for rank in found:
        for hand, door in rank:
            assert (door["ranks"], door["clock"][:2]) == (ranks, (STEPS, 3))
            assert [hand[key] for key in ("losses", "masks", "clock")] == [
                door[key] for key in ("losses", "masks", "clock")
            ]
            assert all(torch.equal(hand["model"][key], value) for key, value in door["model"].items())
            for ours, theirs in zip(hand["state"], door["state"], strict=True):
                assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for case in range(len(CASES)):
        assert len({rank[case][1]["masks"] for rank in found}) == 1
        assert len({tuple(rank[case][1]["losses"]) for rank in found}) == ranks, "each rank has its own data"
