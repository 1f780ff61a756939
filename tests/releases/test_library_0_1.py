"""State dicts that a loop in plain torch saved with release 0.1 load bit for bit, and train on as they did."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smet
from smet import LocalStore, MaskBank, Remedies, SmetAdamW, SmetConfig, TopologyController, parameter_groups
from tests.releases.stored import FACTS, STORED, digest

FOUND: dict[str, Any] = FACTS["library"]
SETTINGS: dict[str, Any] = {
    "density": 0.25,
    "update_interval": 5,
    "warmup_steps": 4,
    "block": (1, 2),
    "balance": "never",
}
SAVED, STEPS, TOTAL = 12, 20, 40


class Block(nn.Module):
    """As in ``0.1/make.py``: the release stored ``o_proj`` and ``down_proj`` transposed, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(16, 24)
        self.o_proj = nn.Linear(24, 16, bias=False)
        self.down_proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.relu(x + self.o_proj(torch.relu(self.q_proj(x)))))


def saved() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(STORED / "library.pt", weights_only=True)
    return content


def require_loaded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = model.state_dict()
    assert {key: digest(state[key]) for key in FOUND["model"]} == FOUND["model"]
    dense = {name: digest(layer.dense_weight()) for name, layer in smet.sparse_layers(model).items()}
    assert dense == FOUND["dense"], "every weight stands at its old place"
    entries = [{key: digest(value) for key, value in entry.items()} for entry in optimizer.state.values()]
    assert entries == FOUND["state"]


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, topology: TopologyController | None) -> list[float]:
    losses = []
    for step in range(SAVED, STEPS):
        if topology is not None:
            topology.before_step()
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.flip(1)).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if topology is not None:
            topology.after_step()
    return losses


@pytest.mark.parametrize("with_topology", [True, False])
def test_the_five_objects_load_it_and_go_on(with_topology: bool) -> None:
    """The release asked for the controller's state too; a loop that saved only two goes on by the step."""
    torch.manual_seed(1)
    model, config = Block(), SmetConfig(**SETTINGS)
    smet.sparsify(model, config, quiet=True)
    optimizer = SmetAdamW(parameter_groups(model, config), lr=1e-2, remedies=Remedies.of(config))
    topology = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), total_steps=TOTAL)
    content = saved()
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if with_topology:
        topology.load_state_dict(json.loads((STORED / "library-topology.json").read_text()))
    require_loaded(model, optimizer)
    assert (optimizer.steps_done, topology.mask_digest()) == (FOUND["clock"], FOUND["masks"])
    assert go_on(model, optimizer, topology) == pytest.approx(FOUND["losses"][SAVED:], rel=1e-5)
    assert topology.updates_done == 4


@pytest.mark.parametrize("attach_first", [True, False])
def test_the_front_door_loads_it_and_goes_on(attach_first: bool) -> None:
    torch.manual_seed(1)
    model = Block()
    smet.sparsify(model, quiet=True, **SETTINGS)
    optimizer = smet.AdamW(model, lr=1e-2)
    run = smet.attach(optimizer, total_steps=TOTAL) if attach_first else None
    content = saved()
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    run = run or smet.attach(optimizer, total_steps=TOTAL)
    require_loaded(model, optimizer)
    assert (optimizer.steps_done, run.topology.mask_digest()) == (FOUND["clock"], FOUND["masks"])
    assert go_on(model, optimizer, None) == pytest.approx(FOUND["losses"][SAVED:], rel=1e-5)
    assert run.updates_done == 4
