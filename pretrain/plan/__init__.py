"""What one rank of a layout will hold, send and compute, from the settings alone.

``cut`` says which blocks a pipeline stage gets, ``sizes`` which weights a rank holds, ``memory`` their bytes and
those of activations and transients, ``sending`` the bytes per step, ``compute`` the FLOPs; ``rank`` puts them
together. Nothing here allocates a tensor or joins a process group. ``tools.plan`` and ``python -m pretrain
--dry-run`` print it.
"""

from __future__ import annotations

from pretrain.plan.rank import RankPlan, plan_rank, stages_of
from pretrain.plan.sizes import Block, PlannedWeight, Rank, blocks_of

__all__ = ["Block", "Rank", "RankPlan", "PlannedWeight", "blocks_of", "plan_rank", "stages_of"]
