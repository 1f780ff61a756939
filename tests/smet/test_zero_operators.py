"""ZeRO-3 on two ranks that share masks out, with somebody who looks on: the same runs, and no byte more."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.distributed import run_ranks
from tests.smet.looking import Looking
from tests.smet.zero_runs import STEPS, Case, Session

pytestmark = pytest.mark.slow
CASES = {
    "tiles": Case(3, (8, 16)),
    "checkpointing": Case(3, checkpointing=True),
    "gradient growth": Case(3, settings=(("growth", "gradient"),)),
}


@dataclass
class Watched(Session):
    look: bool = True
    products: int = 0

    def micro_batch(self, step: int, micro: int) -> float:
        with Looking() if self.look else nullcontext() as looking:
            loss = super().micro_batch(step, micro)
        if looking is not None:
            self.products += looking.seen["product"]
        return loss

    def peak(self) -> dict[str, Any]:
        """Bytes of one more micro-batch, when most is held: what autograd keeps, and masks, whole or in parts."""
        held, peak, kept = 0, 0, set()

        def keep(tensor: Tensor) -> Tensor:
            nonlocal held, peak
            if not isinstance(tensor, nn.Parameter):
                held += tensor.nbytes
                kept.add(str(tensor.dtype))
            peak = max(peak, held + sum(mask.nbytes for mask in self.bank.tensors()))
            return tensor

        self.bank.release()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.micro_batch(STEPS, 0)
        return {"peak": peak, "kept": kept, "tickets": 8 * len(self.layers)}


def run_all() -> dict[tuple[str, bool], dict[str, Any]]:
    found = {}
    for name, case in CASES.items():
        for look in (False, True):
            session = Watched(case, look=look).train()
            found[name, look] = {
                **session.summary(), "products": session.products, **(session.peak() if name == "tiles" else {})
            }  # fmt: skip
    return found


@functools.cache
def results() -> list[dict[tuple[str, bool], dict[str, Any]]]:
    return run_ranks(run_all, 2)


@pytest.mark.parametrize("name", CASES)
def test_runs_through_operators_are_the_same_to_the_bit(name: str) -> None:
    for result in results():
        plain, watched = result[name, False], result[name, True]
        assert watched["losses"] == plain["losses"] and watched["norms"] == plain["norms"]
        assert watched["digests"] == plain["digests"] and len(set(watched["digests"])) == 3
        assert all(np.array_equal(mask, plain["masks"][layer]) for layer, mask in watched["masks"].items())
        # Eight layers with the frozen one, in two micro-batches of each step; made again where activations are.
        assert watched["products"] == 8 * 2 * STEPS * (2 if CASES[name].checkpointing else 1) and not plain["products"]


def test_the_mask_is_asked_for_again_and_kept_by_nobody() -> None:
    for result in results():
        plain, watched = result["tiles", False], result["tiles", True]
        assert plain["kept"] == {"torch.float32", "torch.int64"}  # tokens and targets
        assert watched["kept"] == plain["kept"]
        assert 0 < watched["peak"] <= plain["peak"] + 8 * 8  # a ticket of each layer
