"""Mask initialisation: bool ``(tiles,)`` of a whole layer with exactly ``active`` set.

Layers are looked at one by one at their own density, so that plans stay exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smet.criteria.needs import needs

if TYPE_CHECKING:
    from torch import Tensor

    from smet.criteria.sites import Start


def random(start: Start, active: int) -> Tensor:
    """Uniformly."""
    from smet.balance import dealt
    from smet.topology import random_active

    if start.balanced:
        return dealt(start.tiles // start.columns, start.columns, active, start.ranges, start.generator("mask"))
    return random_active(start.tiles, active, start.generator("mask"))


@needs("weights")
def magnitude(start: Start, active: int) -> Tensor:
    """Where the L1 norm of the initial weights is largest; of equals the first."""
    return largest(start, start.weights.float().abs().sum(1), active)


@needs("weights", "gradient")
def snip(start: Start, active: int) -> Tensor:
    """Where |w g| is largest, g of a loss before training (SNIP, Lee et al. 2019, arXiv 1810.02340)."""
    return largest(start, (start.weights * start.gradient).float().abs().sum(1), active)


@needs("weights", "flow", rounds=100)
def synflow(start: Start, active: int) -> Tensor:
    """Where |w| times the gradient of the summed outputs is largest (SynFlow, Tanaka et al. 2020, arXiv 2006.05467).

    The paper's model is linear but for ReLU. Norms and attention stay as they are here, so that in a transformer
    layers do not conserve the flow; ranks within a layer need no conservation between layers.
    """
    return largest(start, (start.weights * start.flow).float().abs().sum(1), active)


def largest(start: Start, scores: Tensor, active: int) -> Tensor:
    """Marks the ``active`` largest ``scores`` ``(tiles,)``, as far as balance allows; of equals the first."""
    from smet.balance import chosen
    from smet.topology import largest as marked

    if start.balanced:
        rows = start.tiles // start.columns
        return chosen(scores, rows, start.columns, active, start.ranges).to(scores.device)
    return marked(scores, active)
