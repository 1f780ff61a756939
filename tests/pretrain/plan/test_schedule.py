"""Orders that the plan counts with are those of DeepSpeed."""

from __future__ import annotations

import pytest
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, TrainSchedule

from pretrain.plan.sending import one_forward_one_backward


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 9])
def test_passes_of_every_stage(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        schedule = TrainSchedule(micro_batches, stages, stage)
        actual = [
            isinstance(instruction, ForwardPass)
            for step in schedule
            for instruction in step
            if isinstance(instruction, (ForwardPass, BackwardPass))
        ]
        planned = list(one_forward_one_backward(stages, stage, micro_batches))
        assert planned == actual
        held = [sum(1 if forward else -1 for forward in planned[: n + 1]) for n in range(len(planned))]
        assert max(held) == min(stages - stage, micro_batches)
