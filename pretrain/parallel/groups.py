"""Optimizer groups that are alike on all ranks: each is an all-reduce of the gradient norm, in which all must meet."""

from __future__ import annotations

from typing import Any

from torch import nn

from pretrain.errors import LaunchError
from pretrain.layout import Layout
from smet.zero import fill_up_groups

REMEDY = (
    "ranks would wait for each other for ever; see that every host runs the same revision of this program and the same "
    "versions of torch and deepspeed; at ZeRO-3, raise deepspeed.zero_optimization.sub_group_size, so that shards of "
    "different lengths make as many sub-groups"
)


def fill_up(groups: list[dict[str, Any]], module: nn.Module, layout: Layout) -> list[dict[str, Any]]:
    """``groups`` with a placeholder where another rank has what this one has nothing of. Collective.

    Only pipeline stages differ, by the layers that fall into them or by patterns that leave some of these dense.

    Args:
        module: what the engine runs.
    """
    if layout.stages == 1:
        return groups
    options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    return fill_up_groups(groups, layout.gather_objects(options), module)


def require_alike(own: dict[str, list[str]], layout: Layout) -> None:
    """Refuse to start where ranks differ in what decides about collectives. Collective.

    Args:
        own: this rank's ``ZeroStore.collective_facts``.

    Raises:
        LaunchError: number, order, names or dtypes of parameter groups differ, or tied parameters do; on every rank.
    """
    everyone = layout.gather_objects(own)
    for what, text in (("groups", "optimizer groups"), ("tied", "tied parameters")):
        held = [(rank, facts[what]) for rank, facts in enumerate(everyone) if facts[what] or what == "groups"]
        for rank, found in held[1:]:
            first, expected = held[0]
            if found != expected:
                raise LaunchError(
                    f"the {text} of rank {rank} are {'; '.join(found) or 'none'}, expected those of rank {first}, "
                    f"{'; '.join(expected)}: {REMEDY}"
                )
