"""The sentences follow from the numbers: other numbers, other sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import DataError
from tests.tools.ablate.made_up import branches, results, run
from tools.ablate import defaults, page, reading, tables
from tools.ablate.collect import read, to_text
from tools.ablate.view import View

FLOOR = [(0.004, 0.005, 0.003), (0.005, 0.004, 0.003), (0.003, 0.004, 0.005)]


def view_of_branches(naive: float, remedied: float) -> View:
    cells = [
        branches(seed, {"prune only": floor, "naive": [naive + v for v in floor],
                        "remedied": [remedied + 0.1 * v for v in floor]})
        for seed, floor in enumerate(FLOOR)
    ]  # fmt: skip
    return View(results(cells))


def test_the_claim_holds_where_the_numbers_say_so():
    [sentence] = reading.branch_claims(view_of_branches(0.1, 0.0036))
    assert "(9 branches)" in sentence and "The claim holds here." in sentence
    assert "0.1040 ± 0.0009" in sentence and "26.0 times SMET's" in sentence and "3 seeds" in sentence


@pytest.mark.parametrize(
    "naive, remedied, missing",
    [
        (0.01, 0.0036, "the factor of 10"),
        (0.0, 0.0036, "naive far above the floor"),
        (0.1, 0.01, "SMET within one deviation of the floor"),
    ],
)
def test_what_does_not_show_is_said(naive: float, remedied: float, missing: str):
    [sentence] = reading.branch_claims(view_of_branches(naive, remedied))
    assert missing in sentence and "The claim holds" not in sentence


def test_excess_below_zero_has_no_ratio_and_does_not_count_against_the_claim():
    [sentence] = reading.branch_claims(view_of_branches(0.1, -0.02))
    assert "there is no ratio" in sentence and "The claim holds here." in sentence
    [sentence] = reading.branch_claims(view_of_branches(-0.1, -0.02))
    assert "the factor of 10" in sentence and "The claim holds" not in sentence


def test_a_page_at_another_beta2_than_the_run_files_says_so():
    view = view_of_branches(0.1, 0.0036)
    assert "at beta2 0.999, where" in reading.of_run_files(view) and "6.6 times" in reading.of_run_files(view)
    view.matrix["run"]["optimizer"] = {**view.matrix["run"].get("optimizer", {}), "beta2": 0.95}
    assert reading.of_run_files(view) == ""


def test_the_products_own_warmup_is_judged_too():
    view = view_of_branches(0.1, 0.0136)
    view.roles["branches"] = {**view.roles["branches"], "default": "remedied"}
    assert "remedied: 0.0140 ± 0.0001, further than one deviation" in reading.branch_claims(view)[0]
    view.roles["branches"]["default"] = "prune only"
    assert "prune only: 0.0040 ± 0.0009, within one deviation of the floor." in reading.branch_claims(view)[0]


def test_each_remedy_leaves_a_share_of_naives_distance_to_the_floor():
    [sentence] = reading.remaining_shares(view_of_branches(0.1, 0.0536))
    assert "50 % with remedied" in sentence and "below" not in sentence
    below = [branches(0, {"prune only": [-0.01, -0.02], "naive": [0.1, 0.1], "remedied": [-0.01, -0.02]})]
    [sentence] = reading.remaining_shares(View(results(below)))
    assert "0 % with remedied" in sentence and "Pruning alone lies below" in sentence
    assert reading.remaining_shares(view_of_branches(-0.1, 0.0)) == []


def test_the_cold_start_of_naive_adam_is_that_of_the_method():
    assert reading.cold_start(10**6, 0.9, 0.999) == pytest.approx(6.57, abs=0.02)
    assert reading.cold_start(100, 0.9, 0.999) < reading.cold_start(1000, 0.9, 0.999) < 6.57
    assert reading.cold_start(10**6, 0.9, 0.95) < 1.6  # beta2 of large models: hardly any


def losses(gap: float, noise: tuple[float, float, float] = (0.0, 0.001, -0.001)) -> list[dict[str, Any]]:
    cells = []
    for seed, wobble in enumerate(noise):
        cells += [run("SET naive", seed, 4.0 + 0.1 * seed, rise=0.05 + wobble), run("static", seed, 4.2 + 0.1 * seed)]
        cells += [run("SMET", seed, 4.0 + 0.1 * seed + gap + wobble), run("dense", seed, 3.8, lr=0.01)]
        cells += [run("dense", seed, 3.7, lr=0.02)]
    return cells


def test_final_losses_are_compared_in_pairs_and_with_the_tuned_dense_model():
    [sentence] = reading.final_claims(View(results(losses(-0.05))))
    assert "SMET ends 0.050 nats below SET naive (3 seeds, p < 0.001: significant)" in sentence
    assert "SET naive ends 0.200 nats below static" in sentence
    assert "above dense at its best rate 0.02" in sentence
    [sentence] = reading.final_claims(View(results(losses(0.01, (0.0, 0.05, -0.05)))))
    assert "SMET ends 0.010 nats above SET naive" in sentence and "not significant" in sentence


def test_the_best_rates_by_density_are_laid_beside_the_rule():
    best = {1.0: 0.01, 0.5: 0.014, 0.25: 0.02}
    cells = [
        run("dense" if density == 1 else "SMET, e = 1", seed, 4.0 + abs(math.log2(rate / best[density])), density, rate)
        for density in best
        for rate in (0.005, 0.01, 0.014, 0.02, 0.04)
        for seed in (0, 1)
    ]
    view = View(results(cells))
    view.roles = {**view.roles, "swept": "SMET, e = 1"}
    found = reading.rate_claims(view)
    assert found[0] == "Best of the rates tried: 0.01 for the dense model, 0.014 at d = 0.5, 0.02 at d = 0.25."
    assert "e = 0.5 makes 0.014, 0.02 of the dense model's best: off by 0.0 doublings" in found[1]
    assert "e = 1 makes 0.02, 0.04" in found[2] and "1.0 at most" in found[2]
    assert "0.02 in the sparse layers and 0.01 elsewhere (SMET, e = 1) ends at" in found[3]
    table = tables.density_sweep(view).splitlines()
    assert table[0] == "| learning rate | dense | d = 0.5 | d = 0.25 |"
    assert [row.count("**") for row in table[2:]] == [0, 2, 2, 2, 0]
    assert reading.rate_claims(View(results(losses(0.0)))) == [], "nothing was swept"


def test_the_spike_metric_is_said_to_tell_methods_apart_only_if_it_does():
    told = " ".join(reading.spike_claims(View(results(losses(0.0)))))
    assert "runs tells them apart" in told and "0.0500" in told
    flat = [{**cell, "updates": []} if cell["method"] == "SMET" else cell for cell in losses(0.0)]
    assert "tells them apart" not in " ".join(reading.spike_claims(View(results(flat))))


def with_alternatives(short: float, protected: float, steep: float) -> View:
    cells = losses(0.0)
    for seed, wobble in enumerate((0.0, 0.001, -0.001)):
        base = 4.0 + 0.1 * seed + 2 * wobble
        for method, gap in (("SMET, short", short), ("SMET, protected", protected), ("SMET, e = 1", steep)):
            cells.append(run(method, seed, base + gap))
    return View(results(cells))


def test_defaults_are_defended_or_not_by_the_numbers():
    better = " ".join(defaults.sentences(with_alternatives(-0.1, -0.1, -0.1)))
    assert "speaks for a warm-up shorter than the interval" in better
    assert "speaks for switching it on" in better and "speaks for e = 1" in better
    assert "The default stays e = 0.5 all the same" in better and "sweep optimizer.lr" in better
    worse = " ".join(defaults.sentences(with_alternatives(0.1, 0.1, 0.1)))
    assert "speaks for W as long as the interval" in worse
    assert "speaks for no protection" in worse and "The default is the best of these here." in worse
    assert "all the same" not in worse
    same = " ".join(defaults.sentences(with_alternatives(0.0, 0.0, -0.0001)))
    assert same.count("does not tell them apart") == 3


def test_the_page_says_what_is_missing_and_survives_the_file(tmp_path: Path):
    whole = results([*losses(-0.05), branches(0, {"prune only": FLOOR[0], "naive": [0.1] * 3})], missing=["one cell"])
    path = tmp_path / "results.json"
    path.write_text(to_text(whole))
    assert read(path) == json.loads(json.dumps(whole))
    page.write(read(path), tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "**Not complete.** Cells that are not done (1): one cell." in text
    assert "| tiny: dense, tuned (lr 0.02) | 3.700 ± 0.000 | - | 3 |" in text
    assert "| tiny: lr 0.02 | **3.700 ± 0.000** | 3 |" in text


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "cells": []}', '{"format": 2, "cells": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="results.json"):
        read(tmp_path / "results.json")
