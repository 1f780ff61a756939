"""A small net whose density falls, for tests in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import smet
from smet.mask import unpack
from smet.optim.front import ModelOptimizer

STEPS, INTERVAL = 44, 4
OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "adamw": lambda model: smet.AdamW(model, lr=1e-2, weight_decay=0.2),
    "lion": lambda model: ModelOptimizer(model, "lion", lr=2e-3, weight_decay=0.2),
}


class Trained:
    """A small net whose density falls, a step at a time."""

    def __init__(self, optimizer: str = "adamw", **settings: Any):
        torch.manual_seed(0)
        shapes = (16, 32), (32, 16), (16, 8)
        self.model = nn.Sequential(*(one for pair in ((nn.Linear(*s), nn.Tanh()) for s in shapes) for one in pair))
        chosen = {"density": 0.1, "initial_density": 0.5, "update_interval": INTERVAL, "warmup_steps": 3, **settings}
        smet.sparsify(self.model, quiet=True, **chosen)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.reports: list[smet.UpdateReport] = []
        self.run = smet.attach(self.optimizer, STEPS, self.reports.append)
        self.schedule = self.run.topology.schedule
        rng = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(32, 16, generator=rng), torch.randn(32, 8, generator=rng)

    def step(self) -> float:
        loss = (self.model(self.x) - self.y).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def layers(self) -> dict[str, smet.SparseLinear]:
        return smet.sparse_layers(self.model)

    def closed(self, layer: smet.SparseLinear) -> Tensor:
        assert layer.closed is not None
        return unpack(layer.closed, layer.active)
