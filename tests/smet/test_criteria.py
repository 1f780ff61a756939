"""Each built-in criterion against a plain reference, and one's own ones: used, and refused in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet import ConfigError, SmetConfig, criteria
from smet.criteria.sites import Site, Start
from smet.mask import unpack
from smet.seeds import generator
from tests.distributed import run_ranks

OWN = "tests.smet.own_criteria"


def site(block: int = 3, blocks: int = 40, active: int = 12, **given: torch.Tensor) -> Site:
    random = torch.Generator().manual_seed(5)
    mask = torch.zeros(blocks, dtype=torch.bool)
    mask[torch.randperm(blocks, generator=random)[:active]] = True
    values = torch.randn(active, block, generator=random)
    return Site(layer="a", number=0, update=2, seed=0, mask=mask, values=values, given=given)


def test_magnitude_is_the_sum_of_absolute_weights() -> None:
    at = site()
    expected = [sum(abs(float(w)) for w in row) for row in at.values]
    assert criteria.PRUNE["magnitude"](at).tolist() == pytest.approx(expected)


def test_saliency_is_weight_times_gradient() -> None:
    at = site(active_gradient=torch.randn(12, 3))
    rows = zip(at.values.tolist(), at.active_gradient.tolist(), strict=True)
    expected = [sum(abs(w * g) for w, g in zip(*row, strict=True)) for row in rows]
    assert criteria.PRUNE["saliency"](at).tolist() == pytest.approx(expected)


def test_age_protected_prunes_the_youngest_last_and_by_size_among_themselves() -> None:
    ages = torch.tensor([4.0, math.inf, 8.0, 4.0] * 3)
    at = site(ages=ages)
    order = criteria.PRUNE["age-protected"](at).argsort().tolist()
    norms = at.values.abs().sum(1).tolist()
    expected = sorted(range(12), key=lambda i: (ages[i] == 4, norms[i]))
    assert order == expected
    old = site(ages=torch.full((12,), math.inf))
    assert torch.equal(criteria.PRUNE["age-protected"](old), criteria.PRUNE["magnitude"](old))


@pytest.mark.parametrize("name", ["gradient", "momentum"])
def test_growth_by_scores_takes_the_largest_where_nothing_is(name: str) -> None:
    scores = torch.rand(40, generator=generator(name))
    at = site(**{"gradient" if name == "gradient" else "moment": scores})
    grown = criteria.GROW[name](at, 7)
    free = [i for i in range(40) if not at.mask[i]]
    assert sorted(grown.tolist()) == sorted(sorted(free, key=lambda i: -scores[i])[:7])


def test_random_growth_draws_from_seed_layer_range_and_update() -> None:
    at = site()
    grown = criteria.GROW["random"](at, 7)
    assert grown.unique().numel() == 7 and not at.mask[grown].any()
    assert torch.equal(grown, criteria.GROW["random"](site(), 7))
    others = [Site(layer="a", number=0, update=3, seed=0, mask=at.mask, values=at.values),
              Site(layer="a", number=1, update=2, seed=0, mask=at.mask, values=at.values),
              Site(layer="b", number=0, update=2, seed=0, mask=at.mask, values=at.values),
              Site(layer="a", number=0, update=2, seed=1, mask=at.mask, values=at.values)]  # fmt: skip
    assert not any(torch.equal(grown, criteria.GROW["random"](other, 7)) for other in others)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", lambda p: 0.02 + 0.28 * (1 + math.cos(math.pi * p)) / 2),
        ("constant", lambda p: 0.3),
        ("linear", lambda p: 0.3 - 0.28 * p),
        ("wsd", lambda p: 0.3 if p < 0.8 else 0.3 - 0.28 * (p - 0.8) / 0.2),
    ],
)
def test_schedules(name: str, expected: Any) -> None:
    for part in range(21):
        assert criteria.SCHEDULES[name](part / 20, 0.3, 0.02) == pytest.approx(expected(part / 20))


def test_first_masks_are_exact() -> None:
    weights = torch.randn(30, 4, generator=generator("weights"))
    start = Start(layer="a", tiles=30, seed=0, given={"weights": weights})
    for name, make in criteria.MASKS.items():
        if criteria.declared(make) <= {"weights"}:
            assert int(make(start, 11).sum()) == 11, name
    kept = criteria.MASKS["magnitude"](start, 11)
    norms = weights.abs().sum(1)
    assert norms[kept].min() > norms[~kept].max()


class Loop:
    """A model whose updates are told by ``settings``; the gradient of every step is kept beside it."""

    def __init__(self, **settings: Any):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))
        told = {"density": 0.3, "update_interval": 3, "warmup_steps": 2, "stop_fraction": 1.0, **settings}
        smet.sparsify(self.model, SmetConfig(**told), quiet=True)
        self.optimizer = smet.AdamW(self.model, lr=1e-2)
        self.run = smet.attach(self.optimizer, 30)
        self.layers = smet.sparse_layers(self.model)
        self.steps = 0

    def backward(self, halves: int = 2) -> dict[str, torch.Tensor]:
        """Dense gradient ``(blocks, tile_size)`` by layer, summed over micro-batches, worked out by torch alone."""
        dense = {name: smet.densify(layer) for name, layer in self.layers.items()}
        for half in range(halves):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(100 * self.steps + half))
            self.model(x).pow(2).mean().backward()
            nn.Sequential(dense["0"], nn.ReLU(), dense["2"])(x).pow(2).mean().backward()
        found = {}
        for name, layer in dense.items():
            assert layer.weight.grad is not None
            found[name] = self.layers[name].grid.to_tiles(layer.weight.grad)
        return found

    def step(self) -> None:
        self.steps += 1
        self.optimizer.step()
        self.optimizer.zero_grad()

    def masks(self) -> dict[str, torch.Tensor]:
        return {name: unpack(layer.packed_mask(), layer.grid.tiles) for name, layer in self.layers.items()}


@pytest.mark.parametrize("block", [(1, 1), (2, 4)])
def test_pruning_by_saliency_takes_the_gradient_of_the_whole_step(block: tuple[int, int]) -> None:
    loop = Loop(prune="saliency", block=block, balance="never", prune_schedule="constant")
    for _ in range(2):
        loop.backward()
        loop.step()
    gradients, before = loop.backward(), loop.masks()
    loop.optimizer.step()
    values = {name: layer.values.detach().clone() for name, layer in loop.layers.items()}
    kept = loop.masks()
    assert loop.run.updates_done == 1
    # The update has moved the values: what went is told by the masks, and what stayed by saliency of the rest.
    for name, layer in loop.layers.items():
        after = torch.zeros(layer.grid.tiles, layer.grid.tile_size)
        after[kept[name]] = values[name].view(-1, layer.grid.tile_size)
        saliency = (after * gradients[name]).abs().sum(1)
        stayed, gone = before[name] & kept[name], before[name] & ~kept[name]
        assert int(gone.sum()) == int(0.2 * layer.active) > 0
        assert int((saliency[stayed] > 0).sum()) == int(stayed.sum())


def test_the_mean_of_dense_gradients_is_that_of_every_step() -> None:
    loop = Loop(growth="momentum")
    expected = {name: torch.zeros(layer.grid.tiles, 1) for name, layer in loop.layers.items()}
    for _ in range(5):
        for name, dense in loop.backward().items():
            expected[name] = 0.9 * expected[name] + 0.1 * dense
        loop.step()
    for name, mean in loop.run.topology.gradients.means.items():
        torch.testing.assert_close(mean, expected[name])
    before = loop.masks()
    for name, dense in loop.backward().items():
        expected[name] = 0.9 * expected[name] + 0.1 * dense
    loop.step()
    for name, after in loop.masks().items():
        grown, left = after & ~before[name], ~after & ~before[name]
        assert grown.any() and expected[name][grown].abs().min() >= expected[name][left].abs().max()


def test_a_loop_that_grows_by_momentum_resumes_bit_for_bit_from_two_state_dicts(tmp_path: Path) -> None:
    whole, half = Loop(growth="momentum", prune="age-protected"), Loop(growth="momentum", prune="age-protected")
    for loop, steps in ((whole, 11), (half, 5)):
        for _ in range(steps):
            loop.backward()
            loop.step()
    torch.save({"model": half.model.state_dict(), "optimizer": half.optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = Loop(growth="momentum", prune="age-protected")
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.steps = 5
    for _ in range(6):
        resumed.backward()
        resumed.step()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_ages_are_told_before_their_codes_are_given_out_again() -> None:
    """With an update at every step codes mature and are reused; the youngest are always one step old."""
    seen = []
    loop = Loop(prune="age-protected", update_interval=1, prune_schedule="constant")
    prune = loop.run.topology.decider.prune
    loop.run.topology.decider.prune = lambda site: (seen.append(site.ages), prune(site))[1]
    for _ in range(30):
        loop.backward(1)
        loop.step()
    assert len(seen) == 60 and not any(ages.isnan().any() for ages in seen)
    assert all(float(ages.min()) == 1 for ages in seen[2:])


def test_functions_of_ones_own_train() -> None:
    loop = Loop(
        prune=f"{OWN}:faded", growth=f"{OWN}:mixed", prune_schedule=f"{OWN}:halving", mask_init=f"{OWN}:first_ones"
    )
    assert all(mask[0] and mask[-1] and not mask[-2] for mask in loop.masks().values())
    grown = []
    loop.run._on_update = lambda report: grown.append((report.fraction, report.grown))
    for _ in range(30):
        loop.backward()
        loop.step()
    assert [fraction for fraction, _ in grown] == [max(0.005, 0.2 * 0.5 ** int(4 * s / 30)) for s in range(3, 31, 3)]
    assert all(count > 0 for fraction, count in grown if fraction > 0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prune": f"{OWN}:square"},
            r"prune '.*:square' gives torch.float32 of shape \(230, 1\) for layer 0, expected",
        ),
        ({"prune": f"{OWN}:not_a_number"}, r"prune '.*:not_a_number' gives 230 NaN among 230 scores of 0"),
        ({"prune": f"{OWN}:broken"}, r"fail on layer 0 \(ZeroDivisionError: no such thing\)"),
        ({"prune": f"{OWN}:unasked"}, r"reads 'active_gradient' of layer 0 without having asked: put @needs"),
        ({"growth": f"{OWN}:again"}, r"growth '.*:again' grows 46 active tiles of layer 0 again"),
        ({"growth": f"{OWN}:twice"}, "grows a tile of layer 0 twice"),
        ({"growth": f"{OWN}:beyond"}, "grows beyond the 768 tiles of layer 0"),
        (
            {"growth": f"{OWN}:halving"},
            r"growth is '.*', a function of \(progress, start, end\), expected a function of \(site, count\)",
        ),
        ({"growth": "pathlib:Path"}, r"growth is 'pathlib:Path', a class, expected a function of \(site, count\)"),
        ({"prune": f"{OWN}:misspelled"}, r"needs 'gradeint', expected one of gradient, .*did you mean 'gradient'"),
        ({"prune": f"{OWN}:missing"}, "has no 'missing'"),
        ({"growth": "no.such.module:f"}, "module no.such.module cannot be imported"),
        ({"growth": "randm"}, r"growth is 'randm', expected one of random, gradient, momentum, or package.module:name"),
        (
            {"prune_schedule": f"{OWN}:rising"},
            r"prune_schedule '.*:rising' gives 1.0.* expected a fraction in \[0, 1\]",
        ),
        (
            {"mask_init": f"{OWN}:too_few"},
            r"gives torch.bool of shape \(768,\) with 229 set for layer 0, expected .* 230",
        ),
        ({"prune": f"{OWN}:leaving"}, r"fail on layer 0 \(SystemExit: 3\)"),
        (
            {"prune_schedule": f"{OWN}:narrow"},
            r"prune_schedule is '.*:narrow', a function of \(progress\), expected a function of \(progress, start, end",
        ),
        (
            {"mask_init": f"{OWN}:square"},
            r"mask_init is '.*', a function of \(site\), expected a function of \(start",
        ),
    ],
)
def test_what_is_no_answer_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        loop = Loop(prune_schedule=settings.pop("prune_schedule", "constant"), **settings)
        for _ in range(3):
            loop.backward()
            loop.step()
    assert "\n" not in str(caught.value)


def test_functions_that_work_in_place_change_nothing_but_copies() -> None:
    untouched, loop = Loop(), Loop(prune=f"{OWN}:overwriting")
    for _ in range(4):
        for one in (untouched, loop):
            one.backward()
            one.step()
    sizes = [sum(float(p.detach().abs().sum()) for p in one.model.parameters()) for one in (untouched, loop)]
    assert sizes[1] > 0.5 * sizes[0]
    assert all(bool(layer.values.any()) for layer in smet.sparse_layers(Loop(mask_init=f"{OWN}:wiping").model).values())


def test_a_module_that_ends_the_program_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script_without_guard.py").write_text("import sys; sys.exit('bye')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"prune is 'script_without_guard:f': .* \(SystemExit: bye\)"):
        Loop(prune="script_without_guard:f")


def test_a_config_that_names_a_module_imports_nothing() -> None:
    assert SmetConfig(prune="no.such.module:f", mask_init="no.such.module:g").problems() == []


def together(settings: dict[str, Any]) -> str:
    """Trains over all ranks; what stops it."""
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 16))
        smet.sparsify(model, SmetConfig(density=0.3, update_interval=1, stop_fraction=1.0, **settings), quiet=True)
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = smet.AdamW(model, lr=1e-2)
        run = smet.attach(optimizer, 10)
        for _ in range(3):
            wrapped(torch.randn(4, 24)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return run.topology.mask_digest()
    except ConfigError as error:
        return str(error)


def all_together() -> list[str]:
    cases = [{"growth": f"{OWN}:each_its_own"}, {"prune": f"{OWN}:fails_on_one"}, {"growth": f"{OWN}:mixed"},
             {"growth": "momentum"}, {"prune_schedule": f"{OWN}:late"},
             {"prune_schedule": f"{OWN}:uneven"}]  # fmt: skip
    return [together(case) for case in cases]


def test_ranks_that_would_decide_differently_all_stop_with_one_line() -> None:
    first, second = run_ranks(all_together, 2)
    assert "decide differently on the ranks of layer 0" in first[0] and first[0] == second[0]
    assert first[1] == second[1] and first[1].endswith("fail on layer 0 (ValueError: rank 1 has had enough); on rank 1")
    assert first[2:4] == second[2:4] and len(first[2]) == len(first[3]) == 32
    assert first[4] == second[4] and "too late for rank 1" in first[4] and first[4].endswith("; on rank 1")
    assert first[5] == second[5] and "gives 0.1 to 0.2 on the ranks at step" in first[5]
