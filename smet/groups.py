"""What a group of ``SmetAdamW`` may say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from smet.errors import ConfigError

KNOWN = ("params", "param_names", "name", "lr", "betas", "eps", "weight_decay", "lr_factor", "aged", "initial_lr")
NOT_OFFERED = ("amsgrad", "maximize")
"""Options of torch's AdamW that change the formula; those that only choose an implementation are passed over."""


def check_group(name: str, group: Mapping[str, Any]) -> None:
    """Refuse values with which Adam cannot work, options that it does not have, and misspelt keys.

    Keys of others (schedulers, engines) are left alone.

    Raises:
        ConfigError: carries every problem of the group.
    """
    problems = []
    for key, floor in (("lr", 0.0), ("eps", 0.0), ("weight_decay", 0.0), ("lr_factor", 0.0)):
        if not floor <= float(group[key]) < math.inf:
            problems.append(f"{key} of group '{name}' is {group[key]}, expected a number of {floor:g} or more")
    betas = group["betas"]
    if len(betas) != 2 or not all(0.0 <= float(beta) < 1.0 for beta in betas):
        problems.append(
            f"betas of group '{name}' are {tuple(betas)}, expected two numbers in [0, 1), such as 0.9, 0.999"
        )
    for key in group:
        if key in NOT_OFFERED and group[key]:
            problems.append(f"group '{name}' asks for {key}, which SmetAdamW does not have; remove it")
        elif key not in KNOWN and (near := get_close_matches(key, KNOWN, n=1, cutoff=0.8)):
            problems.append(f"group '{name}' has the key '{key}', which nobody reads (did you mean '{near[0]}'?)")
    if problems:
        raise ConfigError(problems)
