"""Sections of a run file that keep a run going: ``guard`` and ``operation``."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.rules import below


@dataclass(kw_only=True)
class GuardConfig:
    """What counts as a spike of loss or gradient norm, and what is done about it (``pretrain.callbacks.guard``)."""

    enabled: bool = True
    """Whether spikes are skipped; steps with gradients that are not finite always are."""
    window: int = 128
    """Steps whose median and spread a step is compared with."""
    loss_deviations: float = 12.0
    """A loss this many robust standard deviations above the window's median is a spike; 0 = never."""
    norm_deviations: float = 12.0
    """The same for the logarithm of the gradient norm; 0 = never."""
    max_skips: int = 5
    """Skipped steps within a window that make the run go back to its last good checkpoint."""
    max_rollbacks: int = 3
    """A run that would go back more often than this stops."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("guard", self, 16, ("window",)) + below("guard", self, 1, ("max_skips",))
        found += below("guard", self, 0, ("max_rollbacks",))
        for name in ("loss_deviations", "norm_deviations"):
            if not getattr(self, name) >= 0:
                found.append(f"guard.{name} is {getattr(self, name)}, expected 0 or more")
        return found


@dataclass(kw_only=True)
class OperationConfig:
    """Time limits, heartbeats and the watchdog (``pretrain.stopping``, ``pretrain.heartbeat``)."""

    time_limit: float = 0.0
    """Minutes from the start of the process after which it saves and stops; 0 = none but Slurm's."""
    time_margin: float = 120.0
    """Seconds kept for the last save ahead of a time limit."""
    heartbeat: float = 5.0
    """Seconds between two writes of a rank's heartbeat file."""
    stuck_after: float = 1800.0
    """Seconds without any progress after which the watchdog ends the run; 0 = never."""
    start_within: float = 120.0
    """The same for start-up and the first step, where it says at once which ranks are waited for, and ends the run only
    if they all wait for each other and none is at work; 0 = never."""
    meet_within: float = 600.0
    """Seconds from the start of the first rank until all have to be there."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = [
            f"operation.{name} is {getattr(self, name)}, expected 0 or more"
            for name in ("time_limit", "time_margin", "stuck_after", "start_within")
            if not getattr(self, name) >= 0
        ]
        if 0 < 60 * self.time_limit <= self.time_margin:
            found.append(
                f"operation.time_limit is {self.time_limit:g} minutes with time_margin {self.time_margin:g} seconds,"
                " expected more than the margin: the run would end before its first step"
            )
        for name in ("heartbeat", "meet_within"):
            if not getattr(self, name) > 0:
                found.append(f"operation.{name} is {getattr(self, name)}, expected a positive number of seconds")
        return found
