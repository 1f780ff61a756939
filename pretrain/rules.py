"""Sentences about values out of bounds: what was found, and what was expected. Any section may use them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pretrain.errors import nearest
from smet.fields import choices


def below(section: str, config: Any, minimum: int, names: Iterable[str]) -> list[str]:
    """A problem for each of the named whole numbers that lies below ``minimum``."""
    return [
        f"{section}.{name} is {getattr(config, name)}, expected {minimum} or more"
        for name in names
        if getattr(config, name) < minimum
    ]


def above(section: str, config: Any, maximum: int, names: Iterable[str]) -> list[str]:
    """A problem for each of the named whole numbers that lies above ``maximum``: no machine holds what it asks for."""
    return [
        f"{section}.{name} is {getattr(config, name)}, expected at most {maximum:,}"
        for name in names
        if getattr(config, name) > maximum
    ]


def outside_unit(section: str, config: Any, names: Iterable[str]) -> list[str]:
    """A problem for each of the named numbers that is no fraction in [0, 1]."""
    return [
        f"{section}.{name} is {getattr(config, name)}, expected a fraction in [0, 1]"
        for name in names
        if not 0.0 <= getattr(config, name) <= 1.0
    ]


def no_choice(section: str, config: Any) -> list[str]:
    """A problem for each value that is not among the choices of its field, a ``Literal`` of text."""
    return [
        f"{section}.{name} is '{getattr(config, name)}', expected one of {', '.join(allowed)}"
        + nearest(getattr(config, name), allowed)
        for name, allowed in choices(config.__class__).items()
        if getattr(config, name) not in allowed
    ]
