"""The same training by the front door and by the five objects behind it, in loops of several kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import smet
from smet import (
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
)

SETTINGS: dict[str, Any] = {"density": 0.25, "update_interval": 5, "warmup_steps": 10}
KINDS: dict[str, dict[str, Any]] = {
    "random growth": SETTINGS,
    "growth by gradients": {**SETTINGS, "growth": "gradient"},
    "growth by mean gradients": {**SETTINGS, "growth": "momentum"},
    "kept dense weights": {**SETTINGS, "weight_residency": "dense"},
    "the naive baseline": {"method": "rigl", "density": 0.25, "update_interval": 5},
    "dense": {"density": 1.0, "update_interval": 0},
}
STEPS = 30


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))


def batch(number: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(number))


class Hand:
    """The five objects, called around every micro-batch."""

    def __init__(self, **settings: Any):
        self.model, config = net(), SmetConfig(**settings)
        smet.sparsify(self.model, config, quiet=True)
        self.optimizer = SmetAdamW(parameter_groups(self.model, config), lr=1e-2, remedies=Remedies.of(config))
        store, bank = LocalStore(self.optimizer), MaskBank(self.model)
        self.topology = TopologyController(self.model, config, store, bank, total_steps=STEPS)

    def before(self) -> None:
        self.topology.before_step()

    def after(self) -> None:
        self.topology.after_step()


class Door:
    """The three lines; nothing is called."""

    def __init__(self, **settings: Any):
        self.model = net()
        smet.sparsify(self.model, quiet=True, **settings)
        self.optimizer = smet.AdamW(self.model, lr=1e-2)
        self.topology = smet.attach(self.optimizer, total_steps=STEPS).topology

    def before(self) -> None: ...

    def after(self) -> None: ...


Loop = Hand | Door


def loss_of(loop: Loop, number: int) -> Tensor:
    x = batch(number)
    return nn.functional.mse_loss(loop.model(x), x)


def ordinary(loop: Loop, first: int = 0, last: int = STEPS) -> list[float]:
    losses = []
    for number in range(first, last):
        loop.before()
        loss = loss_of(loop, number)
        loss.backward()
        losses.append(loss.item())
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.after()
    return losses


def with_scaler(loop: Loop) -> list[float]:
    """Steps 5, 10 and 16 overflow: two of them are those that an update follows, one is the step after."""
    scaler, losses = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6), []
    for number in range(STEPS):
        loop.before()
        loss = loss_of(loop, number)
        losses.append(loss.item())
        scaler.scale(loss * (float("inf") if number in (4, 10, 16) else 1.0)).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        loop.model.zero_grad()  # as some trainers do it: the optimizer hears nothing of the skipped step
        loop.after()
    return losses


class Accumulating(torch.optim.Optimizer):
    """What accelerate hands out: ``step`` and ``zero_grad`` do nothing until gradients are to be used."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.sync = optimizer, False

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure) if self.sync else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.sync:
            self.optimizer.zero_grad(set_to_none)


def accumulating(loop: Loop) -> list[float]:
    """Three micro-batches to a step, and every fourth step is left out."""
    wrapped, losses = Accumulating(loop.optimizer), []
    for number in range(3 * STEPS):
        loop.before()
        loss = loss_of(loop, number)
        losses.append(loss.item())
        (loss / 3).backward()
        wrapped.sync = number % 3 == 2 and number // 3 % 4 != 3
        wrapped.step()
        wrapped.zero_grad()
        loop.after()
        if number // 3 % 4 == 3 and number % 3 == 2:
            loop.optimizer.zero_grad(set_to_none=False)
    return losses


def with_closure(loop: Loop) -> list[float]:
    losses = []
    for number in range(STEPS):

        def closure(number: int = number) -> float:
            loop.optimizer.zero_grad()
            loss = loss_of(loop, number)
            loss.backward()
            return loss.item()

        loop.before()
        losses.append(loop.optimizer.step(closure))
        loop.after()
    return losses


def tensors(loop: Loop) -> dict[str, Tensor]:
    found = dict(loop.model.state_dict())
    for index, param in enumerate(param for group in loop.optimizer.param_groups for param in group["params"]):
        found |= {f"{index} {key}": value for key, value in loop.optimizer.state[param].items()}
    return found


def require_equal(a: Loop, b: Loop) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert a.optimizer.steps_done == b.optimizer.steps_done
    means, others = a.optimizer.topology.moments, b.optimizer.topology.moments
    assert means.keys() == others.keys() and all(torch.equal(means[name], others[name]) for name in means)
    assert replace(a.optimizer.topology, moments={}) == replace(b.optimizer.topology, moments={})
    assert a.optimizer.ages == b.optimizer.ages
