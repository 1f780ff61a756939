"""When the topology changes, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from smet.config import SmetConfig
from smet.criteria import schedule_of
from smet.errors import ConfigError
from smet.fields import shown
from smet.named import is_own


@dataclass(frozen=True)
class TopologySchedule:
    """Update times and prune fractions of one run of ``total_steps`` optimizer steps."""

    config: SmetConfig
    total_steps: int

    @property
    def last_step(self) -> int:
        """No update happens after this step."""
        return int(self.config.stop_fraction * self.total_steps)

    def due(self, step: int) -> bool:
        """Whether an update follows optimizer step ``step`` (counted from 1)."""
        config = self.config
        return config.dynamic and step > 0 and step % config.update_interval == 0 and step <= self.last_step

    def next_due(self, step: int) -> int | None:
        """The first step after ``step`` that an update follows; None where none does."""
        interval = self.config.update_interval
        following = (step // interval + 1) * interval if interval else 0
        return following if self.due(following) else None

    def updates_until(self, step: int) -> int:
        """Updates that follow the steps up to ``step``."""
        return min(step, self.last_step) // self.config.update_interval if self.config.dynamic else 0

    def prune_fraction(self, step: int) -> float:
        """zeta(t): the fraction of active tiles replaced at the update after ``step``.

        Raises:
            ConfigError: the schedule gives no fraction.
        """
        config = self.config
        schedule, progress = schedule_of(config), min(1.0, step / max(1, self.last_step))
        try:
            found = schedule(progress, config.prune_start, config.prune_end)
        except (Exception, SystemExit) as error:
            if not is_own(config.prune_schedule):
                raise
            raise ConfigError(
                f"prune_schedule '{config.prune_schedule}' fails at step {step} ({type(error).__name__}: {error}); it"
                " is called with (progress, start, end)"
            ) from error
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0.0 <= found <= 1.0:
            raise ConfigError(
                f"prune_schedule '{config.prune_schedule}' gives {shown(found)} at step {step}, expected a fraction in"
                " [0, 1]"
            )
        return found
