"""Prune criteria: scores ``(active,)`` of the active tiles, of which the smallest are pruned.

How many are pruned, ties (by position) and ``protect_rounds`` are not a criterion's business. NaN is refused where
the weights have none, and infinity is pruned last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smet.criteria.needs import needs

if TYPE_CHECKING:
    from torch import Tensor

    from smet.criteria.sites import Site


def magnitude(site: Site) -> Tensor:
    """L1 norm of each tile's master weights (SET, Mocanu et al. 2018)."""
    return site.values.abs().sum(1)


@needs("active_gradient")
def saliency(site: Site) -> Tensor:
    """|w g| summed over each tile: to first order, how much the loss changes without it.

    Mozer and Smolensky 1989; Molchanov et al. 2017, arXiv 1611.06440. The gradient is that of one step.
    """
    return (site.values * site.active_gradient).abs().sum(1)


@needs("ages")
def age_protected(site: Site) -> Tensor:
    """L1 norm, but what was grown last goes only when nothing older is left.

    Unlike ``protect_rounds``, which no criterion gets around, it never makes an update smaller.
    """
    scores, youngest = magnitude(site), site.ages.min()
    return scores + scores.max() * ((site.ages == youngest) & youngest.isfinite())
