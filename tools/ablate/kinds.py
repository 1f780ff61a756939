"""What a method or a variant of a branch stands for, by its settings and not by its name: it decides its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..figures.style import line_of
from .view import View

ORDER = ("naive", "warm-up", "local", "smet", "static", "dense")
"""Kinds as legends list them."""


def kind(keys: Mapping[str, Any]) -> str:
    """Of a method's settings, on top of those of ``keys["method"]``."""
    method = str(keys.get("method") or "smet")
    if method in ("dense", "static"):
        return method
    cured = method.startswith("smet")
    local = keys.get("bias_correction", "local" if cured else "global") == "local"
    warmed = keys.get("warmup_steps", int(cured)) != 0
    return {(True, True): "smet", (True, False): "local", (False, True): "warm-up"}.get((local, warmed), "naive")


def method_looks(view: View, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method -> colour and line style."""
    methods = view.matrix.get("methods") or {}
    roles = {name for name in view.roles.values() if isinstance(name, str)} - _second(view)
    return _looks({name: kind(methods.get(name) or {}) for name in names}, roles)


def variant_looks(view: View, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Variant of a branch -> colour and line style; the floor is a dotted line."""
    variants = view.matrix["branches"]["variants"]
    roles = view.roles.get("branches") or {}
    kinds = {
        name: "static" if (variants.get(name) or {}).get("frozen") else kind(variants.get(name) or {}) for name in names
    }
    looks = _looks(kinds, {roles.get("naive"), roles.get("remedied")})
    return {
        name: {**look, "linestyle": (0, (1.2, 1.2))} if kinds[name] == "static" else look
        for name, look in looks.items()
    }


def _second(view: View) -> set[str]:
    """Methods with a role beside the one that has the kind's own colour."""
    roles = view.roles
    return {roles[role] for role in ("naive_scaled", "static_scaled", "short_warmup", "protected", "swept")
            if isinstance(roles.get(role), str)}  # fmt: skip


def _looks(kinds: Mapping[str, str], first: set[Any]) -> dict[str, dict[str, Any]]:
    """In the order of legends: by kind, the one with a role in front."""
    found: dict[str, dict[str, Any]] = {}
    for one in ORDER:
        names = [name for name in kinds if kinds[name] == one]
        names.sort(key=lambda name: name not in first)  # stable
        found |= {name: line_of(one, place) for place, name in enumerate(names)}
    return found
