"""The optimizer's formula as the run file names it: looked up, its options checked, its state in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.config import RunConfig
from pretrain.config.optimizer import ADAMW
from pretrain.errors import ConfigError, nearest
from smet.optim import find

if TYPE_CHECKING:
    from smet.optim.formula import Formula


def formula_of(config: RunConfig) -> Formula:
    """The formula of ``optimizer.name``; one of the user's own is imported.

    Raises:
        ConfigError: there is none, it does not work under ZeRO, or it does not take ``optimizer.options``.
    """
    from smet.optim.formula import require_flat  # torch is imported here at the latest

    formula = find("optimizer.name", config.optimizer.name)
    require_flat(formula)
    options, known = options_of(config), formula.defaults
    problems = [
        f"optimizer.options.{name} is no option of {formula.name}{nearest(name, known) or _known(known)}"
        for name in options
        if name not in known
    ]
    if not problems:
        problems = [_keyed(config.optimizer.name, text) for text in formula.problems({**known, **options})]
    if problems:
        raise ConfigError(problems)
    return formula


def _keyed(name: str, text: str) -> str:
    """What a formula says of its options, by the keys that they have in a run file."""
    return f"optimizer.{text.replace('betas', 'beta1, beta2')}" if name in ADAMW else f"optimizer.options.{text}"


def _known(options: Any) -> str:
    return f"; its options: {', '.join(options) or 'none'}"


def options_of(config: RunConfig) -> dict[str, Any]:
    """What the run file says to the formula."""
    settings = config.optimizer
    if settings.name in ADAMW:
        return {"betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    return dict(settings.options)


def state_width(config: RunConfig) -> int:
    """Bytes of optimizer state per weight, master weights and ages apart.

    Raises:
        ConfigError: see ``formula_of``.
    """
    return formula_of(config).width()
