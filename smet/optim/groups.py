"""What a group of an ``AgedOptimizer`` may say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from smet.errors import ConfigError
from smet.optim.formula import Formula

KNOWN = ("params", "param_names", "name", "lr", "weight_decay", "lr_factor", "aged", "densities", "initial_lr")
NOT_OFFERED = ("amsgrad", "maximize")
"""Options of torch's optimizers that change the formula; those that only choose an implementation are passed over."""


def check_group(name: str, group: Mapping[str, Any], formula: Formula) -> None:
    """Refuse values with which the formula cannot work, options that it does not have, and misspelt keys.

    Keys of others (schedulers, engines) are left alone.

    Raises:
        ConfigError: carries every problem of the group.
    """
    known = (*KNOWN, *formula.defaults)
    problems = [
        f"{option} of group '{name}' {rest}"
        for text in [*floor_problems(group, ("lr", "weight_decay", "lr_factor")), *formula.problems(group)]
        for option, _, rest in [text.partition(" ")]
    ]
    for key in group:
        if key in NOT_OFFERED and group[key]:
            problems.append(f"group '{name}' asks for {key}, which {formula.name} does not have here; remove it")
        elif key not in known and (near := get_close_matches(key, known, n=1, cutoff=0.8)):
            problems.append(f"group '{name}' has the key '{key}', which nobody reads (did you mean '{near[0]}'?)")
    if problems:
        raise ConfigError(problems)


def floor_problems(options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A problem for each of the named options that is no finite number of 0 or more."""
    return [
        f"{name} is {options[name]}, expected a number of 0 or more"
        for name in names
        if not 0.0 <= _number(options[name]) < math.inf
    ]


def betas_problem(betas: Any) -> list[str]:
    """A problem, if these are no two decay rates."""
    several = isinstance(betas, (tuple, list))
    if several and len(betas) == 2 and all(0.0 <= _number(beta) < 1.0 for beta in betas):
        return []
    return [f"betas are {tuple(betas) if several else betas}, expected two numbers in [0, 1), such as 0.9, 0.999"]


def _number(value: Any) -> float:
    """``value``, also one in a tensor of one element; NaN, which is in no range, where it is none."""
    try:
        return math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several
        return math.nan
