"""ZeRO-Offload: the optimizer's partition in host memory, at stages 1, 2 and 3 on two real ranks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import run_ranks
from tests.smet.zero_runs import Case, Session

STAGES = (1, 2, 3)
PRECISIONS = ("fp32", "bf16")


def pairs() -> dict[Any, Any]:
    """Every stage and precision, with the partition at home and in host memory."""
    found = {}
    for stage in STAGES:
        for precision in PRECISIONS:
            for offload in (False, True):
                session = Session(Case(stage, precision=precision, offload=offload)).train()
                settings = session.engine.config["zero_optimization"].get("offload_optimizer", {})
                state = {name: session.whole(layer) for name, layer in session.layers.items()}
                found[stage, precision, offload] = {
                    **session.summary(), "state": state, "device": settings.get("device"),
                    "devices": {str(tensor.device) for kind, _, tensor in session.held() if kind != "weights"},
                }  # fmt: skip
    return found


@functools.cache
def results() -> list[dict[Any, Any]]:
    return run_ranks(pairs, 2, timeout=300)


each = pytest.mark.parametrize(("stage", "precision"), [(stage, kind) for stage in STAGES for kind in PRECISIONS])


@each
def test_offloading_changes_neither_losses_nor_masks_nor_state(stage: int, precision: str) -> None:
    for result in results():
        home, away = (result[stage, precision, offload] for offload in (False, True))
        assert home["device"] is None and away["device"] == "cpu", "DeepSpeed took the setting"
        torch.testing.assert_close(away["losses"], home["losses"], rtol=1e-6, atol=0)
        torch.testing.assert_close(away["norms"], home["norms"], rtol=1e-5, atol=0)
        assert away["digests"] == home["digests"] and len(set(away["digests"])) == 3
        for name, state in home["state"].items():
            np.testing.assert_array_equal(away["state"][name]["birth"], state["birth"])
            for key in ("weight", "exp_avg", "exp_avg_sq"):
                np.testing.assert_allclose(away["state"][name][key], state[key], rtol=1e-5, atol=1e-7)


@each
def test_an_offloaded_run_learns_and_its_state_is_in_host_memory(stage: int, precision: str) -> None:
    for result in results():
        away = result[stage, precision, True]
        assert away["losses"][-1] < away["losses"][0] - 0.4
        assert away["devices"] == {"cpu"} and away["dtypes"] == {"torch.float32"}
