"""Errors of the training program, by who has to act. See ``smet.errors`` for the rule."""

from __future__ import annotations

from smet.errors import ConfigError, UserError, nearest

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LaunchError",
    "ReplicaError",
    "UserError",
    "nearest",
    "problems_of",
]


class DataError(UserError):
    """A corpus, index or tokenizer that is missing, damaged or does not fit the model."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign or in the way."""


class LaunchError(UserError):
    """A launch whose processes, devices or world size are not what was asked for."""


class ReplicaError(UserError):
    """Ranks that must hold the same weights or masks do not: a failing machine, or a bug."""


class DivergenceError(UserError):
    """Training does not recover from spikes by itself."""


def problems_of(error: Exception) -> list[str]:
    """What is to be printed, a line each."""
    return list(getattr(error, "problems", [str(error)]))
