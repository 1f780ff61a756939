"""One test for each thing that the paper's public code gets wrong and a sparse-training library can get wrong.

Those that need DeepSpeed (clipping and norm, blocks across partitions, traffic) are in test_zero_pitfalls.py.
"""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from torch import Tensor, nn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    SparseLinear,
    TopologyController,
    parameter_groups,
    sparse_layers,
    sparsify,
)
from smet.mask import count_active, unpack

LR = 1e-3


class Run:
    """One sparse layer in plain torch, its gradients given by hand."""

    def __init__(
        self, outputs: int = 8, inputs: int = 10, dtype: torch.dtype = torch.float64, total_steps: int = 10**6,
        **settings: object,
    ):  # fmt: skip
        settings = {"density": 0.5, "update_interval": 5, "stop_fraction": 1.0, "lr_exponent": 0.0, **settings}
        self.config = SmetConfig(**settings)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.model = sparsify(nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=dtype)), self.config).model
        self.layer: SparseLinear = self.model[0]
        remedies = Remedies(self.config.bias_correction, self.config.warmup_steps, self.config.warmup_scope)
        self.optimizer = SmetAdamW(parameter_groups(self.model, self.config), lr=LR, remedies=remedies)
        store = LocalStore(self.optimizer)
        self.controller = TopologyController(self.model, self.config, store, MaskBank(self.model), total_steps)

    def step(self, gradient: float | Tensor = 1.0) -> bool:
        """One step under a constant or given gradient of the values; whether the topology changed."""
        self.controller.before_step()
        if isinstance(gradient, float):
            gradient = torch.full_like(self.layer.values, gradient)
        self.layer.values.grad = gradient
        self.optimizer.step()
        return self.controller.after_step() is not None

    def grown(self) -> Tensor:
        """Which values belong to blocks regrown at the last update, after ``until_update``."""
        return self.optimizer.state[self.layer.values]["birth"] == self.controller.last_code

    def until_update(self) -> None:
        while not self.step():
            pass

    def active(self) -> Tensor:
        return unpack(self.layer.packed_mask(), self.layer.grid.tiles)


def test_paper_pitfall_first_update_of_a_regrown_weight_has_age_one() -> None:
    """Age 2 would give 0.235 lr and the global step 3.16 lr, where Adam's first step is lr."""
    run = Run(warmup_steps=0)
    for _ in range(4):
        run.until_update()
    grown = run.grown()
    assert grown.any() and (run.layer.values[grown] == 0).all()
    run.step(0.7)
    moved = run.layer.values.detach()[grown]
    torch.testing.assert_close(moved, torch.full_like(moved, -LR), rtol=1e-6, atol=0)


def test_paper_pitfall_the_naive_first_update_is_3_lr() -> None:
    """What the test above excludes does happen late in a run without the remedy."""
    run = Run(warmup_steps=0, bias_correction="global")
    run.controller.load_state_dict({**run.controller.state_dict(), "steps_done": 50_000})
    run.until_update()
    grown = run.grown()
    run.step(0.7)
    moved = run.layer.values.detach()[grown]
    torch.testing.assert_close(moved, torch.full_like(moved, -LR * 0.1 / math.sqrt(0.001)), rtol=1e-6, atol=0)


def test_paper_pitfall_warmup_scales_the_step_and_never_the_moments() -> None:
    """Half-way through a warm-up of 50 steps the update is 0.5 lr, and the moments are those without warm-up."""
    warm, plain = (Run(warmup_steps=steps, update_interval=49) for steps in (50, 0))
    warm.until_update()
    plain.until_update()
    grown = warm.grown()
    assert torch.equal(grown, plain.grown())
    for age in range(1, 26):
        before = warm.layer.values.detach().clone()
        warm.step()
        plain.step()
        moved = (before - warm.layer.values.detach())[grown]
        torch.testing.assert_close(moved, torch.full_like(moved, LR * age / 50), rtol=1e-6, atol=0)
        for key in ("exp_avg", "exp_avg_sq"):
            mine, other = (run.optimizer.state[run.layer.values][key] for run in (warm, plain))
            assert torch.equal(mine, other), key


def test_paper_pitfall_density_scaling_reaches_sparse_weights_and_does_not_compound() -> None:
    """Every one of many layers moves by lr / sqrt(d) in each of many steps; dense parameters by lr."""
    config = SmetConfig(density=0.25, update_interval=0, exclude=("head",))
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in range(12):
        model.append(nn.Linear(8, 8).double())
    model.add_module("head", nn.Linear(8, 8).double())
    sparsify(model, config)
    optimizer = SmetAdamW(parameter_groups(model, config), lr=LR, remedies=Remedies(warmup_steps=0))
    values = {layer.values for layer in sparse_layers(model).values()}
    assert len(values) == 12
    for _ in range(10):
        before = {p: p.detach().clone() for p in model.parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        for p, old in before.items():
            expected = torch.full_like(old, LR / math.sqrt(0.25) if p in values else LR)
            torch.testing.assert_close(old - p.detach(), expected, rtol=1e-6, atol=0)


def test_paper_pitfall_16_bit_weights_keep_fp32_masters_and_moments() -> None:
    """The stagnation itself is in test_precision.py; this is the state of a sparse layer after an update."""
    run = Run(dtype=torch.bfloat16)
    run.until_update()
    state = run.optimizer.state[run.layer.values]
    kinds = {key: value.dtype for key, value in state.items()}
    assert kinds == {
        "exp_avg": torch.float32, "exp_avg_sq": torch.float32, "master": torch.float32, "birth": torch.uint8
    }  # fmt: skip
    assert run.layer.values.dtype == torch.bfloat16


@pytest.mark.parametrize("block", [(1, 3), (3, 1), (1, 16), (16, 10)])
def test_paper_pitfall_there_are_no_partial_blocks(block: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        sparsify(nn.Sequential(nn.Linear(10, 8)), SmetConfig(block=block))


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_paper_pitfall_too_few_inactive_blocks_grow_each_once(growth: str) -> None:
    """72 of 80 active and half of them to be replaced: only 8 can be, and the density stays."""
    run = Run(density=0.9, prune_start=0.5, prune_schedule="constant", growth=growth)
    for _ in range(6):
        before = run.active()
        while True:
            run.controller.before_step()
            run.optimizer.zero_grad()
            run.model(torch.randn(4, 10, dtype=torch.float64)).pow(2).mean().backward()
            run.optimizer.step()
            if report := run.controller.after_step():
                break
        assert report.pruned == report.grown == 8
        assert count_active(run.layer.packed_mask()) == 72 == run.layer.values.numel()
        assert (run.active() | before).all(), "all eight inactive tiles were grown, each once"


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_paper_pitfall_a_prune_rate_of_zero_changes_nothing(growth: str) -> None:
    run = Run(prune_start=0.0, prune_end=0.0, growth=growth)
    bits = run.layer.packed_mask().clone()
    for _ in range(12):
        run.controller.before_step()
        run.optimizer.zero_grad()
        run.model(torch.ones(2, 10, dtype=torch.float64)).sum().backward()
        values = run.layer.values.detach().clone()
        run.optimizer.step()
        assert (run.layer.values != values).all()
        report = run.controller.after_step()
        assert report is None or report.pruned == 0
    assert torch.equal(run.layer.packed_mask(), bits)
    assert run.optimizer.state[run.layer.values]["birth"].sum() == 0


@pytest.mark.parametrize("density", [0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_paper_pitfall_masks_have_the_asked_density_exactly(density: float) -> None:
    for shape, seed in itertools.product([(48, 80), (7, 11), (64, 64)], range(5)):
        model = sparsify(nn.Sequential(nn.Linear(*shape)), SmetConfig(density=density, seed=seed)).model
        blocks = shape[0] * shape[1]
        assert abs(model[0].active - density * blocks) <= 0.5
        assert count_active(model[0].packed_mask()) == model[0].active


def test_paper_pitfall_a_frozen_parameter_crashes_neither_step_nor_update() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    config = SmetConfig(density=0.5, update_interval=2, stop_fraction=1.0, growth="gradient")
    optimizer = SmetAdamW(parameter_groups(sparsify(model, config).model, config))
    controller = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), 8)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    updates = 0
    for _ in range(8):
        controller.before_step()
        optimizer.zero_grad()
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()
        updates += controller.after_step() is not None
    assert updates == 4
    assert len(frozen) == 3
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_paper_pitfall_growth_by_gradient_uses_the_gradient() -> None:
    """The inactive places with the largest gradient over all micro-batches are grown, and random growth differs."""
    chosen = {}
    for growth in ("gradient", "random"):
        run = Run(growth=growth, update_interval=1, prune_schedule="constant", prune_start=0.2)
        before = run.active()
        run.controller.before_step()
        batches = [torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
        dense = torch.zeros(8, 10, dtype=torch.float64)
        for x in batches:
            y = run.model(x)
            y.pow(2).sum().backward()
            dense += (2 * y.detach()).t() @ x
        run.optimizer.step()
        assert run.controller.after_step() is not None
        chosen[growth] = (run.active() & ~before).nonzero().view(-1).tolist()
        scores = torch.where(before, -1.0, dense.abs().view(-1))
        best = scores.topk(len(chosen[growth])).indices.sort().values.tolist()
        assert (chosen[growth] == best) == (growth == "gradient")
    assert len(chosen["gradient"]) == len(chosen["random"]) == 8


def test_paper_pitfall_topology_updates_stop() -> None:
    run = Run(update_interval=5, stop_fraction=0.5, total_steps=100)
    updates = [step for step in range(1, 101) if run.step()]
    assert updates == list(range(5, 51, 5))


def test_paper_pitfall_masks_ages_and_moments_are_in_the_saved_state() -> None:
    """Continuing bit for bit is in test_precision.py; here: nothing of a run lives outside its state dicts."""
    run = Run()
    run.until_update()
    model, optimizer = run.model.state_dict(), run.optimizer.state_dict()
    assert torch.equal(model["0.mask"], run.layer.packed_mask())
    assert {"exp_avg", "exp_avg_sq", "birth"} <= set(optimizer["state"][0])
    assert optimizer["smet"]["births"][:2] == [0, 5] and optimizer["smet"]["steps_done"] == 5
    assert {"ages", "updates_done", "steps_done", "last_code"} <= set(run.controller.state_dict())


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
def test_paper_pitfall_state_is_smaller_than_dense_adams(density: float) -> None:
    """At rest, block 1, 16 bits: d (2 weight + 4 master + 8 moments + 1 age) + 1/8 mask, against dense's 14."""
    run = Run(outputs=256, inputs=128, dtype=torch.bfloat16, density=density)
    run.until_update()
    weights = 256 * 128
    run.layer.values.grad = None
    held = sum(t.numel() * t.element_size() for _, _, t in LocalStore(run.optimizer).live_tensors())
    held += run.layer.packed_mask().numel()
    assert held / weights == pytest.approx(15 * density + 0.125, rel=1e-3)
    assert held / weights < 14 * (density + 0.06)


def test_paper_pitfall_the_step_is_no_slower_than_torchs_adamw_on_the_dense_model() -> None:
    """A quarter of the weights, with ages, against all of them, without; the best of several steps each."""
    run = Run(outputs=1024, inputs=1024, dtype=torch.float32, density=0.25, update_interval=2)
    for _ in range(3):
        run.until_update()
    run.layer.values.grad = torch.randn_like(run.layer.values)
    weight = nn.Parameter(torch.randn(1024, 1024))
    weight.grad = torch.randn_like(weight)
    dense = torch.optim.AdamW([weight], lr=LR)

    def seconds(optimizer: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    pairs = [(seconds(run.optimizer), seconds(dense)) for _ in range(20)]  # by turns, so that load hits both
    ours, theirs = (min(times) for times in zip(*pairs, strict=True))
    assert ours < 1.5 * theirs, f"sparse {ours * 1e3:.2f} ms, dense {theirs * 1e3:.2f} ms"
