"""Experts on two ranks: what DistributedDataParallel, fully_shard and ZeRO 1 and 3 train is what one process trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import smet
from tests.distributed import run_ranks
from tests.smet.test_experts import build

STEPS = 6
RUNS: tuple[tuple[Any, str], ...] = (
    ("alone", "random"), ("ddp", "random"), ("fsdp", "random"), (1, "random"), (3, "random"),
    ("alone", "gradient"), (3, "gradient"),
)  # fmt: skip
"""What trains, and how weights grow."""


def train(engine: Any, growth: str) -> tuple[list[float], str, int]:
    """(losses over all ranks, digest of the masks, gathered elements of experts at rest)."""
    model = build()
    smet.sparsify(model, density=0.4, update_interval=2, stop_fraction=1.0, warmup_steps=2, growth=growth, quiet=True)
    if engine == "fsdp":
        mesh = init_device_mesh("cpu", (2,))
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh)
    optimizer, trained = smet.AdamW(model, lr=1e-2), model
    if engine == "ddp":
        trained = DistributedDataParallel(model)
    elif engine in (1, 3):
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": engine, "stage3_param_persistence_threshold": 0},
        }  # fmt: skip
        trained, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    handle = trained if engine in (1, 3) else optimizer
    run = smet.attach(handle, STEPS, replicas=None if engine == "alone" else "all")
    losses = []
    for step in range(STEPS):
        ids = torch.randint(3, 64, (4, 6), generator=torch.Generator().manual_seed(step % 2))
        ids = ids if engine == "alone" else ids.chunk(2)[dist.get_rank()]
        loss = trained(input_ids=ids, labels=ids).loss
        if engine not in (1, 3):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            trained.backward(loss)
            trained.step()
        whole = loss.detach().clone()
        if engine != "alone":
            dist.all_reduce(whole)
            whole /= 2
        losses.append(float(whole))
    rest = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    digest = run.topology.mask_digest()
    run.detach()
    return losses, digest, rest


def session() -> dict[Any, Any]:
    return {(engine, growth): train(engine, growth) for engine, growth in RUNS}


@pytest.mark.slow
def test_two_ranks_train_experts_as_one_process_does() -> None:
    first, second = run_ranks(session, 2, timeout=300)
    for engine, growth in RUNS:
        losses, digest, rest = first[engine, growth]
        assert losses[-2:] < losses[:2]
        assert second[engine, growth] == (losses, digest, rest), "the ranks agree"
        assert losses == pytest.approx(first["alone", growth][0], abs=1e-4), (engine, growth)
        assert (rest == 0) == (engine == 3), "of partitioned values, none is whole at rest"
    assert first["ddp", "random"][1] == first["alone", "random"][1]
