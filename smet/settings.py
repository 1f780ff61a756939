"""Settings are told once, to ``sparsify``: the model remembers them for whoever works with it later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from smet.config import SmetConfig
from smet.errors import ConfigError, nearest

REMEMBERED = "_smet_settings"
"""Attribute of a module: the settings of each ``sparsify`` of it, in order."""

WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "DeepSpeedEngine": "module",
}
"""Class of a wrapper, to its attribute that is the model."""

OF_LAYERS = (
    "method", "density", "initial_density", "block", "distribution", "include", "exclude", "fan_in_init", "mask_init",
    "weight_residency", "compute", "permute",
)  # fmt: skip
"""What is said of single layers, so that a second ``sparsify`` may say something else."""


TOLD: list[Callable[[nn.Module], object]] = []
"""Who else learns of a model that was made sparse: ``smet.hf``, where it is imported."""


def told(config: SmetConfig | None, settings: Mapping[str, Any]) -> SmetConfig:
    """The config that a caller means, who gives one or its settings by name.

    Raises:
        ConfigError: both are given, or a setting that does not exist.
    """
    if config is not None and not isinstance(config, SmetConfig):
        raise ConfigError(f"config is a {type(config).__name__}, expected an SmetConfig, or its settings by name")
    known = [part.name for part in fields(SmetConfig)]
    problems = [f"there is no setting '{name}'{nearest(name, known)}" for name in settings if name not in known]
    if config is not None and settings:
        problems.append(f"{', '.join(settings)} and a config are given, expected one of both: settings are told once")
    if problems:
        raise ConfigError(problems)
    return config if config is not None else SmetConfig(**settings)


def remember(model: nn.Module, config: SmetConfig) -> None:
    """Let ``model`` know that it was made sparse by ``config``, as it is now."""
    setattr(model, REMEMBERED, [*vars(model).get(REMEMBERED, []), replace(config)])
    for tell in TOLD:
        tell(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """``model`` without DistributedDataParallel, ``torch.compile`` or an engine around it."""
    while (inside := WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, inside)
    return model


def settings_of(model: nn.Module) -> SmetConfig:
    """What ``model``, or parts of it, were made sparse by.

    Raises:
        ConfigError: nothing of it was, or by settings that cannot both hold.
    """
    found = [config for module in model.modules() for config in vars(module).get(REMEMBERED, [])]
    if not found:
        raise ConfigError(
            f"the model, a {type(model).__name__}, remembers no settings; make it sparse first: smet.sparsify(model,"
            " density=0.25)"
        )
    first = found[0]
    problems = [
        f"the model was made sparse with {part.name} {getattr(first, part.name)!r} and {getattr(other, part.name)!r},"
        " expected the same each time"
        for other in found[1:]
        for part in fields(SmetConfig)
        if part.name not in OF_LAYERS and getattr(other, part.name) != getattr(first, part.name)
    ]
    if problems:
        raise ConfigError(problems)
    # Its topology changes, and density falls, if any layer's does.
    firsts = [config.initial_density for config in found if config.initial_density is not None]
    return replace(
        first, density=min(config.density for config in found), initial_density=max(firsts) if firsts else None
    )
