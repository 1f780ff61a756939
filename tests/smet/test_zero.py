"""ZeRO 1, 2 and 3 on 1, 2 and 4 real ranks: the same decisions, masks, losses and norms as plain torch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from smet.exchange import Range
from tests.distributed import run_ranks
from tests.smet.zero_runs import STEPS, Case, Session, blocks_that_differ, run_cases

STAGES, RANKS = (1, 2, 3), (1, 2, 4)
KINDS: dict[str, dict[str, Any]] = {
    "block 1x1": {},
    "block 1x16": {"block": (1, 16)},
    "block 4x4": {"block": (4, 4)},
    "balanced": {"block": (4, 4), "settings": (("balance", "always"), ("growth", "gradient"))},
    "tiles 8x16": {"block": (8, 16)},
    "gradient growth": {"settings": (("growth", "gradient"), ("distribution", "erk"))},
}


def plant_and_decide(stage: int, kind: str) -> list[str]:
    """Digests of three updates from master weights, births and dense gradients that do not depend on the layout."""
    case = Case(stage, **KINDS[kind])
    session = Session(Case(stage, case.block, settings=(*case.settings, ("protect_rounds", 1))))
    digests = []
    for update in range(3):
        rng = torch.Generator().manual_seed(update)
        for layer in session.layers.values():
            fragment = session.store.fragment(layer.values)
            own = slice(fragment.start, fragment.start + fragment.master.numel())
            weights = torch.randn(fragment.total, generator=rng)
            weights[::3] = weights[0]  # plenty of ties
            fragment.master.copy_(weights[own])
            dense = torch.randn(layer.grid.rows, layer.grid.cols, generator=rng)
            if session.controller.config.growth == "gradient":
                session.controller.gradients.add_dense(layer, dense)
        session.optimizer.steps_done += 2
        digests.append(session.controller.update().digest)
    return digests


def everything() -> dict[Any, Any]:
    """All runs of one rank count, in one set of processes."""
    planted = {(stage, kind): plant_and_decide(stage, kind) for stage in STAGES for kind in KINDS}
    return {**planted, **run_cases([Case(stage, **kind) for stage in STAGES for kind in KINDS.values()])}


@functools.cache
def results(ranks: int) -> list[dict[Any, Any]]:
    return run_ranks(everything, ranks, timeout=600)


@functools.cache
def plain(kind: str) -> dict[str, Any]:
    return Session(Case(0, **KINDS[kind])).train().summary()


every_layout = pytest.mark.parametrize(
    ("ranks", "stage", "kind"), [(ranks, stage, kind) for ranks in RANKS for stage in STAGES for kind in KINDS]
)


@every_layout
def test_given_the_same_master_weights_the_decision_is_the_same(ranks: int, stage: int, kind: str) -> None:
    expected = results(1)[0][1, kind]
    assert len(set(expected)) == 3
    for result in results(ranks):
        assert result[stage, kind] == expected


@every_layout
def test_live_runs_agree_with_plain_torch(ranks: int, stage: int, kind: str) -> None:
    """Losses and norms within reduction-order noise, masks but for 0.1 % of the blocks."""
    expected = plain(kind)
    for result in results(ranks):
        run = result[Case(stage, **KINDS[kind])]
        torch.testing.assert_close(run["losses"], expected["losses"], rtol=2e-5, atol=0)
        torch.testing.assert_close(run["norms"], expected["norms"], rtol=2e-5, atol=0)
        assert len(run["digests"]) == len(set(run["digests"])) == 3
        assert run["replaced"] == expected["replaced"] and min(run["replaced"]) > 0
        differ, blocks = blocks_that_differ(run["masks"], expected["masks"])
        assert differ <= 0.001 * blocks
    assert expected["losses"][-1] < expected["losses"][0] - 0.5, "the runs must learn"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", RANKS)
def test_live_digests_agree_across_stages_and_ranks(ranks: int, kind: str) -> None:
    digests = {tuple(result[Case(stage, **KINDS[kind])]["digests"]) for result in results(ranks) for stage in STAGES}
    assert len(digests) == 1
    losses = [results(ranks)[0][Case(stage, **KINDS[kind])]["losses"] for stage in STAGES]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=0)


def cut_inside_a_block(ranges: list[Range], size: int) -> bool:
    return any(length and start % size for start, length in ranges)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_the_sizes_are_odd(ranks: int, stage: int) -> None:
    """What makes the tests above worth something: nothing divides, and blocks straddle partition boundaries."""
    for kind in ("block 1x16", "block 4x4"):
        runs = [result[Case(stage, **KINDS[kind])] for result in results(ranks)]
        layers = {name: [run["ranges"][name] for run in runs] for name in runs[0]["ranges"]}
        assert any(cut_inside_a_block(ranges, 16) for ranges in layers.values())
    runs = [result[Case(stage)] for result in results(ranks)]
    totals = {name: sum(run["ranges"][name][1] for run in runs) for name in runs[0]["ranges"]}
    assert sum(total % ranks > 0 for total in totals.values()) >= 4
    if stage < 3:
        assert any(run["ranges"][name] == (0, 0) for run in runs for name in totals), "a rank that owns nothing"


@pytest.mark.parametrize("stage", STAGES)
def test_paper_pitfall_norm_and_clipping_see_sparse_gradients(stage: int) -> None:
    """The norm of plain torch over all parameters is met above; here: the sparse part of it is not negligible."""
    session = Session(Case(0))
    for micro in range(2):
        session.micro_batch(0, micro)
    sparse = [layer.values.grad for layer in session.layers.values()]
    dense = [p.grad for p in session.model.parameters() if p.grad is not None and all(p.grad is not g for g in sparse)]
    total, without = (float(torch.stack([g.norm() for g in grads]).norm()) for grads in (sparse + dense, dense))
    assert without < 0.96 * total
    for ranks in RANKS:
        assert results(ranks)[0][Case(stage)]["norms"][0] == pytest.approx(total, rel=1e-5)


def test_enough_steps_follow_every_update() -> None:
    assert STEPS == 7 and len(plain("block 1x1")["digests"]) == 3
    assert np.isfinite(plain("block 1x1")["losses"]).all()
