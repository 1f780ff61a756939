"""When the topology changes, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from smet.config import SmetConfig
from smet.criteria import schedule_of
from smet.errors import ConfigError
from smet.fields import shown
from smet.named import is_own

ROUNDING = 1e-12
"""What a schedule may be beyond its bounds."""


@dataclass(frozen=True)
class TopologySchedule:
    """Update times, prune fractions and densities of one run of ``total_steps`` optimizer steps."""

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
        progress = min(1.0, step / max(1, self.last_step))
        return self._asked("prune_schedule", step, progress, config.prune_start, config.prune_end, (0.0, 1.0))

    @property
    def density_end(self) -> int:
        """The step whose update leaves the final density: the last one within ``density_end_fraction``, or the first
        of all."""
        config = self.config
        if not config.dynamic:
            return 0
        until = min(self.last_step, int(config.density_end_fraction * self.total_steps))
        return max(1, until // config.update_interval) * config.update_interval

    def density(self, step: int, first: float | None = None, final: float | None = None) -> float:
        """The density that the last update up to ``step`` leaves: a pure function of settings and step.

        Args:
            first, final: those of a layer; default: the densities of the settings.

        Raises:
            ConfigError: the schedule gives no density between the two.
        """
        first = self.config.first_density if first is None else first
        final = self.config.density if final is None else final
        update = self.updates_until(step) * self.config.update_interval
        if not self.config.falls or first <= final or update == 0:
            return first
        if update >= self.density_end:
            return final
        return self._asked("density_schedule", update, update / self.density_end, first, final, (final, first))

    def require_end(self) -> None:
        """Refuse a density schedule that does not end where density is to end.

        Raises:
            ConfigError: it gives another one at progress 1.
        """
        config, end = self.config, self.density_end
        found = self._asked("density_schedule", end, 1.0, config.first_density, config.density, (0.0, 1.0))
        if abs(found - config.density) > 1e-6:
            raise ConfigError(
                f"density_schedule '{config.density_schedule}' ends at {found:g}, expected density {config.density:g};"
                " it is called with (progress, start, end)"
            )

    def _asked(
        self, setting: str, step: int, progress: float, start: float, end: float, bounds: tuple[float, float]
    ) -> float:
        """What the schedule that ``setting`` names gives at the update after ``step``."""
        schedule, name = schedule_of(self.config, setting), getattr(self.config, setting)
        try:
            found = schedule(progress, start, end)
        except (Exception, SystemExit) as error:
            if not is_own(name):
                raise
            raise ConfigError(
                f"{setting} '{name}' fails at step {step} ({type(error).__name__}: {error}); it is called with"
                " (progress, start, end)"
            ) from error
        least, most = bounds
        number = not isinstance(found, bool) and isinstance(found, (int, float))
        if not number or not least - ROUNDING <= found <= most + ROUNDING:
            raise ConfigError(
                f"{setting} '{name}' gives {shown(found)} at step {step}, expected a fraction in [{least:g}, {most:g}]"
            )
        return min(most, max(least, found))
