"""SmetAdamW, element by element in fp64 against the reference, through steps and topology updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smet import (
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    SparseLinear,
    TopologyController,
    parameter_groups,
    sparsify,
)
from smet.mask import unpack
from tests.smet.reference import DenseReference

LR = 3e-2


def build(config: SmetConfig, decay: float) -> tuple[SparseLinear, SmetAdamW, TopologyController]:
    torch.manual_seed(5)
    model = sparsify(nn.Sequential(nn.Linear(12, 16, bias=False, dtype=torch.float64)), config).model
    remedies = Remedies(config.bias_correction, config.warmup_steps, config.warmup_scope)
    optimizer = SmetAdamW(parameter_groups(model, config, decay), lr=LR, remedies=remedies)
    controller = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), 1000)
    return model[0], optimizer, controller


def mask_of(layer: SparseLinear) -> np.ndarray:
    tiles = unpack(layer.packed_mask(), layer.grid.tiles).unsqueeze(1).expand(-1, layer.grid.tile_size)
    return layer.grid.from_tiles(tiles).numpy()


def dense(layer: SparseLinear, values: torch.Tensor) -> np.ndarray:
    return layer.canonical_weight(values.detach()).numpy()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("warmup", "scope"), [(0, "regrown"), (7, "regrown"), (7, "all"), (3, "regrown")])
@pytest.mark.parametrize("correction", ["local", "global"])
def test_every_element_follows_the_formulas_through_topology_updates(
    correction: str, warmup: int, scope: str, exponent: float, decay: float
) -> None:
    """32 steps with 6 updates: ages from 1 to 32, warm-ups that end before, at and after the next update."""
    density = 0.25
    config = SmetConfig(
        density=density, update_interval=5, stop_fraction=1.0, prune_schedule="constant", prune_start=0.3,
        block=(1, 1) if warmup != 3 else (2, 3), bias_correction=correction, warmup_steps=warmup, warmup_scope=scope,
        lr_exponent=exponent, balance="never",
    )  # fmt: skip
    layer, optimizer, controller = build(config, decay)
    reference = DenseReference(
        dense(layer, layer.values).copy(), mask_of(layer), correction == "local", warmup, scope == "all"
    )
    random = np.random.default_rng(1)
    ages_seen, replaced = set(), 0
    for step in range(1, 33):
        gradient = random.normal(size=reference.weight.shape) * 10.0 ** random.integers(-3, 3)
        layer.values.grad = layer.compress_gradient(torch.from_numpy(gradient))
        controller.before_step()
        optimizer.step()
        reference.step(gradient, LR * density**-exponent, decay)
        state = optimizer.state[layer.values]
        pairs = {"weight": layer.values, "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        for name, values in pairs.items():
            expected = np.where(reference.active, getattr(reference, name), 0.0)
            np.testing.assert_allclose(dense(layer, values), expected, rtol=1e-11, atol=1e-14, err_msg=f"{name} {step}")
        ages_seen |= set(reference.age[reference.active].tolist())
        if controller.after_step():
            replaced += int(reference.change_topology(mask_of(layer)).sum())
            np.testing.assert_array_equal(dense(layer, layer.values) != 0, reference.weight != 0)
    assert replaced == 6 * int(0.3 * layer.active) * layer.grid.tile_size
    assert {1, 5, 6, 32} <= ages_seen, "the test must mix ages"


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.99), (0.95, 0.9)])
def test_a_groups_own_betas_correct_its_bias(betas: tuple[float, float]) -> None:
    ours, torchs = (nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    optimizer = SmetAdamW([{"params": [ours], "betas": betas}], lr=0.1)
    expected = torch.optim.AdamW([torchs], lr=0.1, betas=betas, weight_decay=0.0)
    for step in range(6):
        ours.grad = torchs.grad = torch.sin(torch.arange(9.0, dtype=torch.float64) + step)
        optimizer.step()
        expected.step()
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_without_ages_it_is_torchs_adamw_over_any_shape(decay: float) -> None:
    shapes = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)]
    ours = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    torchs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = SmetAdamW(ours, lr=0.01, weight_decay=decay)
    expected = torch.optim.AdamW(torchs, lr=0.01, weight_decay=decay)
    for _ in range(8):
        for p, q in zip(ours, torchs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        expected.step()
    for p, q in zip(ours, torchs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_closure_gives_its_loss_with_gradients_enabled() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SmetAdamW([weight], lr=0.1)

    def closure() -> torch.Tensor:
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


def test_an_external_clock_waits_for_the_start_and_moves_by_advance_alone() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SmetAdamW([weight], lr=0.1, external_clock=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight == 1).all() and not optimizer.state and optimizer.steps_done == 0
    optimizer.start()
    optimizer.step()
    optimizer.step()
    assert optimizer.steps_done == 0, "an engine may call step once per sub-group"
    optimizer.advance()
    assert optimizer.steps_done == 1


def test_a_schedulers_rate_is_multiplied_by_the_factor_at_every_step() -> None:
    plain, scaled = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = SmetAdamW([{"params": [plain]}, {"params": [scaled], "lr_factor": 2.0}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(5):
        plain.grad = scaled.grad = torch.ones(2, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(scaled, plain * 2, rtol=1e-12, atol=0)
