"""Ranks that train one model under DistributedDataParallel decide alike, and those that do not are told apart."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparsify,
)
from smet.agreement import fingerprint
from smet.controller import MaskMismatchError
from tests.distributed import run_ranks

ROWS, STEPS = 16, 8


class Net(nn.Module):
    """Two sparse layers, and one that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.seldom = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, seldom: bool = False) -> torch.Tensor:
        y = self.second(self.first(x).relu())
        return self.seldom(y) if seldom else y


def make(replicas: Any = "all", total_steps: int = 20, **settings: Any) -> tuple[nn.Module, Any, TopologyController]:
    config = SmetConfig(**{"density": 0.25, "update_interval": 2, "warmup_steps": 2, "stop_fraction": 1.0, **settings})
    model = Net().double()  # one rank rounds otherwise than two, and a regrown weight's first steps are its sign
    sparsify(model, config)
    optimizer = SmetAdamW(parameter_groups(model, config), lr=1e-2)
    store = LocalStore(optimizer, replicas=replicas)
    return model, optimizer, TopologyController(model, config, store, MaskBank(model), total_steps)


def train(model: nn.Module, optimizer: Any, topology: TopologyController, part: int, parts: int) -> list[str]:
    """Part ``part`` of every batch; digests of the updates."""
    digests = []
    for step in range(STEPS):
        x = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64).chunk(parts)[part]
        topology.before_step()
        (model(x, seldom=bool(step % 2)) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if report := topology.after_step():
            digests.append(report.digest)
    return digests


def together(growth: str) -> tuple[list[str], list[torch.Tensor]]:
    model, optimizer, topology = make(growth=growth)
    ranks = dist.get_world_size()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    digests = train(wrapped, optimizer, topology, dist.get_rank(), ranks)
    return digests, [p.detach().clone() for p in model.parameters()]


def error_of(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (ConfigError, MaskMismatchError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def alone_but_not_said() -> Any:
    """Ranks with data of their own and nothing that averages gradients."""
    return train(*make(), part=dist.get_rank(), parts=2)


def frozen_on_one_rank() -> Any:
    model, optimizer, topology = make(growth="gradient")
    if dist.get_rank():
        model.second.requires_grad_(False)
    return train(model, optimizer, topology, 0, 1)


def session() -> dict[str, Any]:
    rank = dist.get_rank()
    pairs = [dist.new_group([0]), dist.new_group([1])]
    return {
        "random": together("random"),
        "gradient": together("gradient"),
        "alone": train(*make(replicas=None, growth="gradient"), part=rank, parts=2),
        "group of one": train(*make(replicas=pairs[rank], growth="gradient"), part=rank, parts=2),
        "not averaged": error_of(alone_but_not_said),
        "frozen": error_of(frozen_on_one_rank),
        "settings": error_of(lambda: make(density=0.25 if rank else 0.3)),
        "length": error_of(lambda: make(total_steps=20 + rank)),
        "masks": error_of(lambda: make(seed=rank)),
        "foreign group": error_of(lambda: make(replicas=pairs[1 - rank])),
    }


@functools.cache
def results() -> list[dict[str, Any]]:
    return run_ranks(session, 2)


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_two_ranks_of_ddp_hold_one_model_which_is_that_of_one_rank(growth: str) -> None:
    (digests, weights), (other_digests, other_weights) = (result[growth] for result in results())
    model, optimizer, topology = make(growth=growth)
    assert digests == other_digests == train(model, optimizer, topology, 0, 1) and len(digests) == STEPS // 2
    for a, b, one in zip(weights, other_weights, model.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, one.detach(), rtol=1e-3, atol=1e-5)


def test_ranks_that_say_so_train_models_of_their_own() -> None:
    for result in results():
        assert len(result["alone"]) == STEPS // 2 and result["alone"] == result["group of one"]
    assert results()[0]["alone"] != results()[1]["alone"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("not averaged", "MaskMismatchError: .* differ over the 2 ranks of one model after a topology update: average "
         "gradients over all of them .DistributedDataParallel., or say LocalStore.optimizer, replicas=None"),
        ("settings", "ConfigError: settings, sparse layers, masks differ between the ranks"),
        ("frozen", "ConfigError: frozen layers differ between the ranks"),
        ("length", "ConfigError: total_steps differ between the ranks .* say LocalStore.optimizer, replicas=None"),
        ("masks", "ConfigError: settings, masks differ between"),
        ("foreign group", "ConfigError: this rank is not in the group of replicas"),
    ],
)  # fmt: skip
def test_what_cannot_be_one_model_is_refused_on_every_rank(case: str, message: str) -> None:
    for result in results():
        assert re.match(message, result[case]), result[case]


def test_fingerprints_see_every_bit_and_every_place() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1_100_000, generator=random), torch.arange(9, dtype=torch.uint8), torch.randn(5).bfloat16()]
    own = fingerprint(tensors).tolist()
    assert fingerprint([t.clone() for t in tensors]).tolist() == own
    assert fingerprint(tensors[::-1]).tolist() != own
    for index in range(3):
        changed = [t.clone() for t in tensors]
        changed[index][[0, -1]] = changed[index][[-1, 0]]
        assert fingerprint(changed).tolist() != own
        changed = [t.clone() for t in tensors]
        changed[index][3] = changed[index][3] + 1
        assert fingerprint(changed).tolist() != own
