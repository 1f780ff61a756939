"""Rates and densities that are told follow what is really open, in cases where that is not what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import smet
from smet.notices import idle_notices
from tests.smet.falling import INTERVAL, STEPS, Trained


def own_factor(trained: Trained, place: int) -> float:
    """What multiplies the rate of one layer."""
    values = trained.model[place].values  # type: ignore[union-attr]
    (group,) = (g for g in trained.optimizer.param_groups if any(p is values for p in g["params"]))
    return float(trained.optimizer.own_factors.get(values, group["lr_factor"]))


def counted(layer: Any) -> float:
    return float(layer.open_tiles / layer.grid.tiles)


def test_ranges_that_keep_a_tile_each_have_the_rate_of_what_is_open() -> None:
    trained = Trained(block=(4, 4), topology_ranges=4, density=0.02, lr_exponent=0.5)
    for _ in range(STEPS):
        trained.step()
    layers = trained.layers()
    assert [layer.open_tiles for layer in layers.values()] == [4, 4, 4]
    for place, name in ((0, "0"), (2, "2"), (4, "4")):
        assert own_factor(trained, place) == pytest.approx(counted(layers[name]) ** -0.5)
    assert trained.run.topology.density == pytest.approx(12 / sum(layer.grid.tiles for layer in layers.values()))


@pytest.mark.parametrize("end", [16, 80])
def test_a_run_that_goes_on_with_other_steps_has_the_rate_of_what_is_open(
    end: int, caplog: pytest.LogCaptureFixture
) -> None:
    trained, other = Trained(lr_exponent=0.5), Trained(lr_exponent=0.5)
    for _ in range(13):
        trained.step()
    other.run.detach()
    other.model.load_state_dict(trained.model.state_dict())
    other.optimizer.load_state_dict(trained.optimizer.state_dict())
    other.run = smet.attach(other.optimizer, end)
    density = trained.run.topology.density
    assert other.run.topology.density == pytest.approx(density, rel=0.02)
    assert other.run.topology.schedule.density(13) != pytest.approx(density, rel=0.1)
    for place, name in ((0, "0"), (2, "2")):
        assert own_factor(other, place) == pytest.approx(counted(other.layers()[name]) ** -0.5, rel=0.01)
    assert (f"density stays at {other.run.topology.density:.3g}: no topology update follows" in caplog.text) == (
        end == 16
    )
    assert sum("density stays at" in record.getMessage() for record in caplog.records) == (end == 16)


def test_a_layer_that_was_frozen_while_density_fell_has_a_rate_of_its_own() -> None:
    trained = Trained(lr_exponent=0.5)
    for step in range(STEPS):
        trained.model[0].requires_grad_(not 6 <= step < 36)
        trained.step()
    layers = trained.layers()
    assert counted(layers["0"]) > 2 * counted(layers["2"]) == pytest.approx(0.2, rel=0.01)
    for place, name in ((0, "0"), (2, "2")):
        assert own_factor(trained, place) == pytest.approx(counted(layers[name]) ** -0.5, rel=0.01)
    tiles = sum(layer.grid.tiles for layer in layers.values())
    assert trained.run.topology.density == pytest.approx(sum(la.open_tiles for la in layers.values()) / tiles)
    assert trained.reports[-1].density["0"] == counted(layers["0"])


def test_too_few_tiles_in_the_end_are_told_as_those_at_first_are() -> None:
    def warnings(**settings: Any) -> list[str]:
        model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
        return smet.sparsify(model, quiet=True, initial_density=1.0, **settings).warnings

    few, empty = warnings(density=0.02, block=(8, 8))
    assert few.startswith(
        "in the end, at density 0.02: 2 layers have too few tiles for the density: 0 has 32, of which"
    )
    assert "at least 10 rows and 10 columns of tiles have no active tile, in 2 of 2 layers (in 0: 3 and 7)" in empty
    (empty,) = warnings(density=0.125, block=(8, 8))
    assert "at least 4 rows and 4 columns" not in few and "at least 4 rows and 4 columns" in empty
    (few,) = (one for one in warnings(density=0.01, topology_ranges=32) if "too few tiles" in one)
    assert "of which 32 active is 0.0156 instead of 0.01" in few
    assert warnings(density=0.25, block=(8, 8)) == warnings(density=0.1) == []


@pytest.mark.parametrize("initial", [1.0, 0.5])
def test_an_average_has_no_closed_tiles(initial: float) -> None:
    trained = Trained(initial_density=initial)
    average = smet.ModelAverage(trained.model, decay=0.9)
    for _ in range(STEPS):
        trained.step()
        average.update(trained.model)
    averaged = average.model(trained.model).requires_grad_(True)
    (averaged(trained.x) - trained.y).square().mean().backward()
    for name, layer in smet.sparse_layers(averaged).items():
        assert layer.closed_tiles == 0 and trained.layers()[name].closed_tiles > 0
        assert layer.open_tiles == layer.active and float((layer.values.grad != 0).float().mean()) > 0.99


def test_a_state_of_constant_density_is_refused_where_density_is_to_fall() -> None:
    constant = Trained(exclude=("4",), density=0.5, initial_density=None)
    for _ in range(2 * INTERVAL):
        constant.step()
    falling = Trained(exclude=("4",))
    falling.model.load_state_dict(constant.model.state_dict())
    falling.optimizer.load_state_dict(constant.optimizer.state_dict())
    with pytest.raises(smet.ConfigError, match="that of a run of constant density") as error:
        falling.step()
    assert len(error.value.problems) == 1
    late = Trained()  # steps before anybody drives the topology are no reason
    late.run.detach()
    late.optimizer.ages.closes, late.optimizer.topology = False, type(late.optimizer.topology)()
    late.step()
    smet.attach(late.optimizer, STEPS)


def test_no_notice_names_what_follows_from_a_setting() -> None:
    for settings in ({"balance": "always"}, {"balance": "never", "block": (4, 4)}):
        told = idle_notices(smet.SmetConfig(method="dense", **settings))
        assert not any("prune_start" in line for line in told)
    assert any("prune_start" in line for line in idle_notices(smet.SmetConfig(method="dense", prune_start=0.3)))
