"""What a criterion looks at beyond masks and weights, and what having that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from smet.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])

AT_UPDATE = {
    "gradient": "|dense gradient| of the step that ends in the update, summed over each tile: 4 bytes per dense"
    " weight and D data-parallel ranks for that step",
    "active_gradient": "the same step's gradient of the active weights: 4 bytes per active weight and D ranks for"
    " that step",
    "moment": "|exponential mean of the dense gradients|, summed over each tile: 8 bytes per dense weight and D ranks"
    " until the last update, half of them in every checkpoint, and one reduce-scatter per layer and micro-batch",
    "ages": "optimizer steps since each active tile was grown",
}
"""Of prune criteria and growth. What they cost is reckoned by ``smet.growth`` and the planner."""

AT_START = {
    "weights": "the layer's dense initial weights",
    "gradient": "gradient of a loss by the dense initial weights: the dense model, once, before training",
    "flow": "gradient of the summed outputs by the absolute weights (SynFlow): the dense model, once, before training",
}
"""Of mask initialisations."""

DENSE = frozenset({"gradient", "flow"})
"""Those of ``AT_START`` for which the dense model has to compute."""


def needs(*names: str, **more: Any) -> Callable[[F], F]:
    """Let a function say what it needs: ``@needs("gradient")``.

    Args:
        more: further attributes, such as ``rounds`` of a mask initialisation.
    """

    def told(function: F) -> F:
        vars(function).update(needs=names, **more)
        return function

    return told


def declared(function: Any, what: str = "", known: Mapping[str, str] | None = None) -> frozenset[str]:
    """What ``function`` says that it needs; a function that says nothing needs masks and weights alone.

    Args:
        what: names the function, for messages.
        known: what there is; None = do not ask.

    Raises:
        ConfigError: it needs something that there is not.
    """
    names = getattr(function, "needs", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if known is not None and name not in known:
            raise ConfigError(f"{what} needs '{name}', expected one of {', '.join(known)}{nearest(str(name), known)}")
    return frozenset(names)
