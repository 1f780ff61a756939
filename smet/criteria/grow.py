"""Growth: ``count`` positions among the inactive tiles, int64 ``(count,)``, each once.

Where tiles are balanced, not all of these can be had. A growth ``by`` a need is then followed down its ranks; of any
other one the positions are taken as they fit, and chance gives the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smet.criteria.needs import needs

if TYPE_CHECKING:
    from torch import Tensor

    from smet.criteria.sites import Site


def random(site: Site, count: int) -> Tensor:
    """Uniformly (SET, Mocanu et al. 2018, arXiv 1707.04780)."""
    from smet.topology import grow_random

    return grow_random(site.inactive, count, site.generator("grow"))


@needs("gradient", by="gradient")
def gradient(site: Site, count: int) -> Tensor:
    """Where the dense gradient is largest (RigL, Evci et al. 2020, arXiv 1911.11134); of equals the first."""
    return largest(site, site.gradient, count)


@needs("moment", by="moment")
def momentum(site: Site, count: int) -> Tensor:
    """Where the mean of dense gradients is largest (SNFS, Dettmers and Zettlemoyer 2019, arXiv 1907.04840).

    Adam's first moment exists for active weights alone; the dense one is kept beside it.
    """
    return largest(site, site.moment, count)


def largest(site: Site, scores: Tensor, count: int) -> Tensor:
    """The ``count`` inactive positions with the largest ``scores`` ``(tiles,)``, of equals the first."""
    from smet.topology import grow_by_score

    return grow_by_score(site.inactive, count, scores)
