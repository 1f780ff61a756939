"""Optimizers of sparse models: ``AgedOptimizer`` keeps clock, ages and births; a formula is one file beside it.

A formula says which vectors it keeps beside the weights, and computes one update on flat values with ages
(``smet.optim.formula``). ``FORMULAS`` names those that are here; one of your own is meant by ``package.module:Class``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smet import named, wanted

if TYPE_CHECKING:
    from smet.optim.formula import Formula

FORMULAS = {
    "adamw": "smet.optim.adamw:AdamWFormula",
    "adamw_8bit": "smet.optim.adamw_8bit:AdamW8bit",
    "lion": "smet.optim.lion:Lion",
}
"""Name to where it is: whoever only checks a name imports nothing."""


def problem(what: str, name: object) -> str | None:
    """What is wrong with a formula's ``name`` as it is spelled; imports nothing."""
    return named.problem(what, name, FORMULAS)


def find(what: str, name: str) -> Formula:
    """The formula that ``name`` means. Imports its module.

    Args:
        what: the setting, for messages.

    Raises:
        ConfigError: there is none, or it is no class derived from ``Formula`` that declares what it should.
    """
    from smet.optim.formula import Formula, made_of

    if (wrong := problem(what, name)) is not None:
        raise named.ConfigError(wrong)
    kind: type[Formula] = named.find(what, FORMULAS.get(name, name), {}, wanted.derived_from(Formula))
    return made_of(what, kind)
