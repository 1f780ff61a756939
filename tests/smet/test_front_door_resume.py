"""What the front door saves goes on bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import smet
from tests.smet.front_door import KINDS, STEPS, Door, Loop, net, ordinary, require_equal


@pytest.mark.parametrize("kind", ["random growth", "growth by gradients", "growth by mean gradients"])
@pytest.mark.parametrize("by_names", [False, True])
def test_torchs_distributed_checkpoints_resume_bit_for_bit(kind: str, by_names: bool, tmp_path: Path) -> None:
    """As dictionaries of tensors, and by names of parameters, as torch's page on checkpoints does it."""

    def states(loop: Loop) -> dict[str, Any]:
        if by_names:
            return dict(zip(("model", "optimizer"), get_state_dict(loop.model, loop.optimizer), strict=True))
        return {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}

    whole, first, second = Door(**KINDS[kind]), Door(**KINDS[kind]), Door(**KINDS[kind])
    ordinary(whole)
    ordinary(first, last=12)
    dcp.save(states(first), checkpoint_id=tmp_path, no_dist=True)
    saved = states(second)
    dcp.load(saved, checkpoint_id=tmp_path, no_dist=True)
    if by_names:
        set_state_dict(
            second.model, second.optimizer,
            model_state_dict=saved["model"], optim_state_dict=saved["optimizer"],
        )  # fmt: skip
    else:
        second.model.load_state_dict(saved["model"])
        second.optimizer.load_state_dict(saved["optimizer"])
    ordinary(second, first=12)
    require_equal(whole, second)
    assert all("smet" not in group for group in second.optimizer.param_groups)


@pytest.mark.parametrize("kind", ["random growth", "growth by gradients"])
@pytest.mark.parametrize("stop", [4, 5, 12])
@pytest.mark.parametrize("attach_first", [True, False])
def test_a_loop_that_saves_model_and_optimizer_resumes_bit_for_bit(kind: str, stop: int, attach_first: bool) -> None:
    whole, first = Door(**KINDS[kind]), Door(**KINDS[kind])
    ordinary(whole)
    ordinary(first, last=stop)
    file = io.BytesIO()
    torch.save([first.model.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    if attach_first:
        second = Door(**KINDS[kind])
    else:
        second = Door.__new__(Door)
        second.model = net()
        smet.sparsify(second.model, quiet=True, **KINDS[kind])
        second.optimizer = smet.AdamW(second.model, lr=1e-2)
    second.model.load_state_dict(values)
    second.optimizer.load_state_dict(state)
    if not attach_first:
        second.topology = smet.attach(second.optimizer, total_steps=STEPS).topology
    ordinary(second, first=stop)
    require_equal(whole, second)
