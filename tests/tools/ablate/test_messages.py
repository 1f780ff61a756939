"""The sentence above each figure follows from the numbers: other numbers, another sentence."""

from __future__ import annotations

import pytest

from tests.tools.ablate.made_up import branches, results, run
from tools.ablate import kinds, messages
from tools.ablate.view import View

SEEDS = (0, 1, 2)
COST = "Naive Adam's regrown weights cost 0.060 nats 30 steps after an update"


def of_branches(naive: float, remedied: float) -> str:
    excess = {"prune only": [0.0], "naive": [naive], "remedied": [remedied]}
    return messages.branches(View(results([branches(seed, excess) for seed in SEEDS])))


def whole(naive: float = 4.0, smet: float = 4.0, static: float = 4.0, dense: float = 4.5, rise: float = 0.0) -> View:
    """Three seeds that differ by much more than the methods do."""
    cells = []
    for seed in SEEDS:
        base = 0.3 * seed
        cells.append(run("dense", seed, base + dense))
        for density in (0.5, 0.25):
            cells.append(run("static", seed, base + static, density))
            cells.append(run("SET naive", seed, base + naive + 0.001 * seed, density, rise=rise + 0.001 * seed))
            cells.append(run("SMET", seed, base + smet + 0.001 * seed, density, rise=0.0005 * seed))
    return View(results(cells))


@pytest.mark.parametrize(
    ("naive", "remedied", "said"),
    [
        (0.06, -0.002, f"{COST}; with SMET they cost nothing"),
        (0.06, 0.004, f"{COST}; with SMET less than a tenth of that"),
        (0.06, 0.03, f"{COST}; with SMET 0.030"),
        (-0.01, 0.03, '30 steps after an update naive Adam stands 0.010 nats below "no update", SMET 0.030'),
    ],
)  # fmt: skip
def test_branches(naive: float, remedied: float, said: str) -> None:
    assert of_branches(naive, remedied) == said


def test_whole_runs_that_differ_and_that_do_not() -> None:
    alike, apart = whole(rise=0.0), whole(rise=0.05)
    size, density = apart.sizes[0], 0.25
    assert "Whole runs do not tell the methods apart" in messages.update(alike, size, density)
    said = messages.update(apart, size, density)
    assert said.startswith("Whole runs tell the methods apart: 12 steps after an update SET naive stands 0.0505 nats")
    names = apart.methods(size, density)
    assert messages.spikes(messages.risen(alike, size, density, names)) == (
        "12 steps after an update the loss of none of 2 methods has risen over the static run by more than chance"
    )
    assert messages.spikes(messages.risen(apart, size, density, names)) == (
        "12 steps after an update, of 2 methods only SET naive has risen over the static run by more than chance"
    )


def test_one_seed_is_no_test() -> None:
    view = View(results([run("static", 0, 4.0), run("SMET", 0, 4.0, rise=0.1)]))
    assert "one seed, so no test" in messages.spikes(messages.risen(view, "tiny", 0.25, ["static", "SMET"]))


@pytest.mark.parametrize(
    ("smet", "said"),
    [
        (4.1, "SMET ends 0.40 nats below dense at its best rate and 0.10 nats above static masks"),
        (3.8, "SMET ends 0.70 nats below dense at its best rate and 0.20 nats below static masks"),
        (4.7, "SMET ends 0.20 nats above dense at its best rate and 0.70 nats above static masks"),
    ],
)
def test_final_losses(smet: float, said: str) -> None:
    assert messages.density(whole(smet=smet)) == said


def test_training_losses() -> None:
    assert (
        messages.curves(whole(smet=4.1), 0.25)
        == "SMET's training loss stays above that of static masks from step 10 on"
    )
    assert (
        messages.curves(whole(smet=3.9), 0.25)
        == "SMET's training loss stays below that of static masks from step 10 on"
    )
    crossing = whole(smet=4.1)
    for cell in crossing.runs:
        if cell["method"] == "SMET":
            cell["loss_curve"] = [[10, 0.0], [20, 9.0]]
    assert messages.curves(crossing, 0.25).endswith("above that of static masks from step 20 on")


def test_without_the_numbers_a_title_claims_nothing() -> None:
    view = View(results([run("SMET", 0, 4.0)]))
    assert messages.curves(view, 0.25) == "Training loss"
    assert messages.density(view) == "Final validation loss against density"
    assert "Held-out loss" in messages.update(view, "tiny", 0.25)
    assert messages.branches(view) == 'Loss over "no update", by remedy'
    assert "SMET" not in messages.changes(view, {}, 1)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"method": "dense"}, "dense"), ({"method": "static", "lr_exponent": 0.5}, "static"),
        ({"method": "set"}, "naive"), ({"method": "rigl", "lr_exponent": 0.5}, "naive"),
        ({"method": "set", "bias_correction": "local"}, "local"), ({"method": "set", "warmup_steps": 40}, "warm-up"),
        ({"method": "set", "bias_correction": "local", "warmup_steps": 40}, "smet"), ({"method": "smet-rigl"}, "smet"),
        ({"bias_correction": "global", "warmup_steps": 0}, "naive"), ({"warmup_steps": 0}, "local"), ({}, "smet"),
    ],
)  # fmt: skip
def test_a_method_is_known_by_its_settings(keys: dict[str, object], kind: str) -> None:
    assert kinds.kind(keys) == kind
