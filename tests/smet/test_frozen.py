"""A layer that is frozen while it trains: decay, momentum, topology updates and growth leave it alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparse_layers,
    sparsify,
)


class Run:
    """Two layers that are updated at every second step."""

    def __init__(self, growth: str, store: type[LocalStore] = LocalStore, interval: int = 2):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
        config = SmetConfig(
            density=0.25, update_interval=interval, stop_fraction=1.0, warmup_steps=4, growth=growth,
            prune_schedule="constant",
        )  # fmt: skip
        self.layers = list(sparse_layers(sparsify(self.model, config).model).values())
        self.optimizer = SmetAdamW(parameter_groups(self.model, config, weight_decay=0.1), lr=1e-2)
        bank = MaskBank(self.model)
        self.topology = TopologyController(self.model, config, store(self.optimizer), bank, total_steps=1000)

    def train(self, steps: int, keep_zeros: bool = False) -> None:
        for _ in range(steps):
            self.topology.before_step()
            self.model(torch.randn(8, 16)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=not keep_zeros)
            self.topology.after_step()


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_it_stays_as_it_is_to_the_bit_while_the_others_go_on(growth: str, keep_zeros: bool) -> None:
    run = Run(growth)
    run.train(5, keep_zeros)
    frozen, other = run.layers
    frozen.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    masks = other.packed_mask().clone()
    run.train(7, keep_zeros)
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    assert not torch.equal(other.packed_mask(), masks)
    assert run.topology.updates_done == 6
    frozen.requires_grad_(True)
    run.train(2, keep_zeros)
    assert not torch.equal(before["values"], frozen.values)
    assert not torch.equal(before["mask"], frozen.mask)


def test_its_weights_keep_their_ages_when_codes_change_hands() -> None:
    run = Run("random", interval=1)
    run.train(3)
    frozen, other = run.layers
    frozen.requires_grad_(False)
    births = run.optimizer.ages.births
    codes = run.optimizer.state[frozen.values]["birth"]
    before = torch.tensor([births[code] for code in codes.tolist()], dtype=torch.float64)
    assert before.max() == 3
    run.train(400)
    births = run.optimizer.ages.births
    now = torch.tensor([births[code] for code in codes.tolist()], dtype=torch.float64)
    assert None not in births[1:], "the test must use up all codes"
    assert (now - before).abs().max() < 8, "only as far as codes of neighbours were merged"


def test_an_engine_that_would_go_on_moving_it_is_told_to_freeze_before() -> None:
    class Partitions(LocalStore):
        skips_frozen = False

    run = Run("random", Partitions)
    run.train(2)
    run.layers[1].requires_grad_(False)
    with pytest.raises(ConfigError, match="2 was frozen after deepspeed.initialize.*freeze layers before"):
        run.train(1)
