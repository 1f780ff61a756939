"""Topology updates in plain torch: what they replace, protect, count and report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    SparseLinear,
    TopologyController,
    UpdateReport,
    parameter_groups,
    sparse_layers,
    sparsify,
)
from smet.mask import unpack


class Run:
    """Two layers whose gradients are drawn at random: all that a topology update needs."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), **settings: Any):
        settings = {"density": 0.3, "update_interval": 4, "stop_fraction": 1.0, "warmup_steps": 4, **settings}
        self.config = SmetConfig(**settings)
        torch.manual_seed(2)
        self.model = sparsify(nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 10)), self.config).model
        remedies = Remedies(self.config.bias_correction, self.config.warmup_steps, self.config.warmup_scope)
        groups = parameter_groups(self.model, self.config)
        self.optimizer = SmetAdamW(groups, lr=1e-2, betas=betas, remedies=remedies)
        self.bank = MaskBank(self.model)
        self.controller = TopologyController(self.model, self.config, LocalStore(self.optimizer), self.bank, 400)
        self.layers = list(sparse_layers(self.model).values())
        self.random = torch.Generator().manual_seed(0)

    def step(self) -> UpdateReport | None:
        self.controller.before_step()
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 20, generator=self.random)).pow(2).mean().backward()
        self.optimizer.step()
        return self.controller.after_step()

    def until_update(self) -> UpdateReport:
        while (report := self.step()) is None:
            pass
        return report

    def mask(self, layer: SparseLinear) -> torch.Tensor:
        return unpack(layer.packed_mask(), layer.grid.tiles)


def test_reports_say_what_happened() -> None:
    run = Run(prune_schedule="constant", prune_start=0.25)
    before = [run.mask(layer) for layer in run.layers]
    report = run.until_update()
    changed = [int((run.mask(layer) & ~old).sum()) for layer, old in zip(run.layers, before, strict=True)]
    assert changed == [int(0.25 * layer.active) for layer in run.layers]
    assert report.pruned == report.grown == sum(changed)
    assert (report.step, report.update, report.fraction, report.recycled) == (4, 1, 0.25, 0)
    assert report.density == {"0": 72 / 240, "1": 36 / 120}
    assert report.digest == run.controller.mask_digest()
    assert report.seconds > 0
    assert report.to_json()["digest"] == report.digest
    assert report.moved == {"0": changed[0], "1": changed[1]}
    assert run.until_update().update == 2


def test_the_pruned_are_the_smallest_and_survivors_keep_everything() -> None:
    run = Run(prune_schedule="constant", prune_start=0.5, block=(2, 2))
    for _ in range(5):
        for _ in range(3):
            assert run.step() is None
        layer = run.layers[0]
        run.controller.before_step()
        run.optimizer.zero_grad()
        run.model(torch.randn(8, 20)).pow(2).mean().backward()
        run.optimizer.step()
        mask, births = run.mask(layer), run.optimizer.ages.births
        state = run.optimizer.state[layer.values]
        tensors = {"weight": layer.values.detach().clone(), **{key: value.clone() for key, value in state.items()}}
        birth_steps = torch.tensor([births[code] for code in tensors.pop("birth").tolist()]).view(-1, 4)
        old = dict(zip(mask.nonzero().view(-1).tolist(), range(layer.active), strict=True))
        assert run.controller.after_step() is not None
        new_mask, births = run.mask(layer), run.optimizer.ages.births
        now = {"weight": layer.values.detach(), **run.optimizer.state[layer.values]}
        new_births = torch.tensor([births[code] for code in now.pop("birth").tolist()]).view(-1, 4)
        scores = tensors["weight"].view(-1, 4).abs().sum(1)
        gone = [old[block] for block in old if not new_mask[block]]
        assert len(gone) == layer.active // 2 == int((new_mask & ~mask).sum())
        kept = [old[block] for block in old if new_mask[block]]
        assert scores[gone].max() <= scores[kept].min()
        for index, block in enumerate(new_mask.nonzero().view(-1).tolist()):
            for name, tensor in now.items():
                value = tensor.view(-1, 4)[index]
                expected = tensors[name].view(-1, 4)[old[block]] if block in old else torch.zeros(4)
                assert torch.equal(value, expected), name
            expected_birth = birth_steps[old[block]] if block in old else torch.full((4,), run.optimizer.steps_done)
            assert torch.equal(new_births[index], expected_birth)


@pytest.mark.parametrize("rounds", [1, 2])
def test_protected_blocks_survive_that_many_updates(rounds: int) -> None:
    run = Run(prune_schedule="constant", prune_start=0.2, protect_rounds=rounds)
    born: dict[tuple[int, int], int] = {}
    early = 0
    for update in range(1, 9):
        before = [run.mask(layer) for layer in run.layers]
        report = run.until_update()
        for index, (layer, old) in enumerate(zip(run.layers, before, strict=True)):
            for block in (old & ~run.mask(layer)).nonzero().view(-1).tolist():
                since = update - born.pop((index, block), -100)
                assert since > rounds
                early += since == rounds + 1
            born |= {(index, block): update for block in (run.mask(layer) & ~old).nonzero().view(-1).tolist()}
        assert report.recycled == 0
    assert early > 0, "protection must end"


def test_without_protection_some_of_the_last_grown_are_recycled_and_counted() -> None:
    run = Run(prune_schedule="constant", prune_start=0.3, warmup_steps=50)
    run.until_update()
    before = [run.mask(layer) for layer in run.layers]
    codes = [run.optimizer.state[layer.values]["birth"].clone() for layer in run.layers]
    report = run.until_update()
    expected = 0
    for layer, old, code in zip(run.layers, before, codes, strict=True):
        gone = ~run.mask(layer)[old.nonzero().view(-1)]
        expected += int((gone & (code == run.optimizer.ages.births.index(4))).sum())
    assert report.recycled == expected > 0


def test_a_reused_birth_code_protects_nobody_by_mistake() -> None:
    """With short-lived betas a code matures and is given out again in the same update.

    Its old weights are not young, however small they are: they must be prunable.
    """
    run = Run(betas=(0.1, 0.1), warmup_steps=0, protect_rounds=1, prune_schedule="constant", prune_start=0.2)
    for _ in range(8):
        run.until_update()
    for _ in range(3):
        assert run.step() is None
    layer, births = run.layers[0], run.optimizer.ages.births
    codes = run.optimizer.state[layer.values]["birth"]
    step = run.optimizer.steps_done + 1
    reused = next(code for code in range(1, 256) if births[code] is not None and run.optimizer.ages._mature(code, step))
    old = (codes == reused).nonzero().view(-1)
    assert old.numel() > 0
    run.controller.before_step()
    run.optimizer.step()
    with torch.no_grad():
        layer.values[old[:3]] = 0.0
    mask = run.mask(layer).nonzero().view(-1)
    assert run.controller.after_step() is not None
    assert births[reused] == step, "the case must reuse the code"
    assert not run.mask(layer)[mask[old[:3]]].any(), "zero weights, not protected, must be pruned"


def test_many_updates_with_all_codes_taken_keep_every_birth_in_the_table() -> None:
    run = Run(update_interval=1, prune_schedule="constant", prune_start=0.1)
    for _ in range(300):
        run.until_update()
    births = run.optimizer.ages.births
    assert None not in births[1:]
    for layer in run.layers:
        used = run.optimizer.state[layer.values]["birth"].unique().tolist()
        assert all(births[code] is not None for code in used)
        assert int(run.mask(layer).sum()) == layer.active


def test_gradient_growth_needs_the_announcement() -> None:
    run = Run(growth="gradient")
    for _ in range(3):
        run.step()
    run.model(torch.randn(8, 20)).sum().backward()
    run.optimizer.step()
    with pytest.raises(RuntimeError, match="gradient growth needs before_step"):
        run.controller.after_step()


def test_dense_gradients_are_kept_for_the_updating_step_alone() -> None:
    run = Run(growth="gradient")
    for step in range(1, 9):
        run.controller.before_step()
        assert all((layer.gradient_sink is not None) == (step % 4 == 0) for layer in run.layers)
        run.optimizer.zero_grad()
        run.model(torch.randn(8, 20)).pow(2).mean().backward()
        dense = sum(4 * layer.grid.rows * layer.grid.cols for layer in run.layers)
        assert run.controller.gradients.bytes_held == (dense if step % 4 == 0 else 0)
        run.optimizer.step()
        run.controller.after_step()
        assert run.controller.gradients.bytes_held == 0
        assert all(layer.gradient_sink is None for layer in run.layers)


def test_a_frozen_layer_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 10))
    model[0].requires_grad_(False)
    config = SmetConfig(density=0.3, update_interval=1, stop_fraction=1.0)
    optimizer = SmetAdamW(parameter_groups(sparsify(model, config).model, config), lr=1e-2)
    controller = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), 10)
    frozen = model[0]
    values, bits = frozen.values.clone(), frozen.packed_mask().clone()
    for _ in range(4):
        model(torch.randn(4, 20)).sum().backward()
        optimizer.step()
        assert controller.after_step() is not None
    assert torch.equal(frozen.values, values) and torch.equal(frozen.packed_mask(), bits)


def test_ranges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"topology_ranges is 7, which does not divide the 240 tiles of 0"):
        Run(topology_ranges=7)
    run = Run()
    with pytest.raises(ConfigError, match="topology_ranges is 4, expected 1 or a multiple of the 3"):
        run.config.topology_ranges = 4
        TopologyController(run.model, run.config, LocalStore(run.optimizer), run.bank, 10, shard=0, shards=3)


def test_each_range_keeps_its_own_number_of_blocks() -> None:
    run = Run(topology_ranges=4, prune_schedule="constant", prune_start=0.5)
    before = [[int(part.sum()) for part in run.mask(layer).chunk(4)] for layer in run.layers]
    report = run.until_update()
    assert report.pruned == sum(count // 2 for counts in before for count in counts)
    assert [[int(part.sum()) for part in run.mask(layer).chunk(4)] for layer in run.layers] == before


def test_reports_of_shards_merge_into_one_of_the_model() -> None:
    parts = [
        UpdateReport(
            10, 2, 0.2, 3, 3, 1, seconds=0.5, digest="a", density={"x": 0.2, "y": 0.1}, moved={"x": 2, "y": 1}
        ),
        UpdateReport(10, 2, 0.2, 4, 4, 0, seconds=0.7, digest="b", density={"x": 0.4}, moved={"x": 4}),
    ]
    merged = UpdateReport.merged(parts)
    assert (merged.step, merged.update, merged.pruned, merged.grown, merged.recycled) == (10, 2, 7, 7, 1)
    assert merged.seconds == 0.7
    assert merged.density == {"x": pytest.approx(0.3), "y": 0.1}
    assert merged.moved == {"x": 6, "y": 1}
    assert merged.digest not in ("a", "b") and merged.digest != UpdateReport.merged(parts[::-1]).digest
    assert UpdateReport.merged(parts[:1]) is parts[0]


def test_a_dense_resident_model_trains_the_same() -> None:
    losses = []
    for residency in ("compressed", "dense"):
        run = Run(weight_residency=residency, growth="gradient")
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(4))
        losses.append([])
        for _ in range(12):
            run.step()
            losses[-1].append(run.model(x).pow(2).sum().item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("block", "prune_start", "density", "still"),
    [((8, 8), 0.05, 0.5, True), ((8, 8), 0.3, 0.5, False), ((1, 1), 0.05, 0.25, False), ((4, 16), 0.1, 0.3, True)],
)
def test_layers_that_no_update_can_change_are_named(
    block: tuple[int, int], prune_start: float, density: float, still: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    settings = SmetConfig(density=density, block=block, prune_start=prune_start, update_interval=2, stop_fraction=1.0)
    sparsify(model, settings, quiet=True)
    optimizer, told = SmetAdamW(parameter_groups(model, settings), lr=1e-2), list[str]()
    controller = TopologyController(
        model, settings, LocalStore(optimizer), MaskBank(model), total_steps=20, tell=told.append
    )
    assert sum("1 of 1 layers never changes" in line for line in told) == still, told
    before = controller.mask_digest()
    for _ in range(20):
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.after_step()
    assert (controller.mask_digest() == before) == still
