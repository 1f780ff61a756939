"""What a run tells: a line of metrics.jsonl at each step, and lines on the screen.

The screen gets plain lines, on a terminal too: runs are started by launchers, whose ranks write into pipes, so that a
bar drawn anew in its place would be seen by few, and logs are read by all. What moves is ``smet watch``.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from pretrain.callbacks.base import Callback, Record
from pretrain.numbers import duration, magnitude
from pretrain.plan.table import human
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import METRICS

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

SILENCE = 30.0
"""Seconds without a line that the first one announces."""


class MetricsCallback(Callback):
    """One JSON object per step in ``metrics.jsonl``."""

    name = "metrics"

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the record of this step."""
        if not trainer.layout.is_main:
            return
        numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        # JSON has no infinity: an overflow's gradient norm is written as null.
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in numbers.items()}
        self.folder.append(METRICS, finite)


class ProgressCallback(Callback):
    """A line after this process's first step, every ``logging.interval`` steps, at updates and evaluations."""

    name = "progress"

    def __init__(self) -> None:
        self._clock = (0.0, 0)
        """(time, step) from which the time left is reckoned: the end of this process's first step, which is slower."""
        self._is_first = True

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock for the estimate of the time left."""
        self._clock = (time.perf_counter(), trainer.step)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Print what is due."""
        is_first, self._is_first = self._is_first, False
        now, (begin, step) = time.perf_counter(), self._clock
        left = (trainer.total_steps - trainer.step) * (now - begin) / max(1, trainer.step - step)
        if is_first:
            self._clock = (now, trainer.step)
        if not trainer.layout.is_main:
            return
        notable = "topology" in record or "validation_loss" in record or record["step"] == trainer.total_steps
        if is_first or notable or record["step"] % trainer.config.logging.interval == 0:
            print("  ".join([*_figures(trainer, record, left), *_news(record)]), flush=True)
        if is_first and (more := _silence(trainer, record["step_seconds"])):
            print(more, flush=True)


def _figures(trainer: Trainer, record: Record, left: float) -> list[str]:
    """Parts of every line; ``left``: seconds."""
    seconds, own, fullest = record["step_seconds"], record["memory_peak"], record["memory_peak_fullest"]
    share = f"MFU {record['mfu']:.1%}" if "mfu" in record else magnitude(1e12 * record["tflops"], "FLOP/s")
    return [
        f"step {trainer.step}/{trainer.total_steps}",
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.2e}",
        f"grad {record['grad_norm']:.2f}",
        f"{seconds:.{2 if seconds < 10 else 1}f} s/step",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"left {duration(left)}",
        f"epoch {record['epochs']:.2f}",
        share,
        human(own) + (f" (fullest rank {human(fullest)})" if fullest > 1.02 * own else ""),
    ]


def _news(record: Record) -> list[str]:
    """Parts of the lines of some steps."""
    parts = []
    if "validation_loss" in record:
        parts.append(
            f"validation loss {record['validation_loss']:.4f} (perplexity {record['validation_perplexity']:.2f})"
        )
    if "topology" in record:
        report = record["topology"]
        closed = f"{report.pruned - report.grown:,} tiles closed, " if report.pruned > report.grown else ""
        stay = f", {report.unmoved:,} stay for want of a place" if report.unmoved else ""
        off = f", {report.uneven:,} rows and columns of tiles off balance" if report.uneven else ""
        now = f", density {record['density']:.3g}" if "density" in record else ""
        parts.append(
            f"topology update {report.update}: {closed}{report.grown:,} tiles moved{stay} in"
            f" {report.seconds:.2f} s{off}{now}"
        )
    return parts


def _silence(trainer: Trainer, seconds: float) -> str:
    """A line that says when the next one comes, where that is a while; ``seconds``: of a step."""
    interval = trainer.config.logging.interval
    following = min((trainer.step // interval + 1) * interval, trainer.last_step)
    wait = (following - trainer.step) * seconds
    if wait < SILENCE:
        return ""
    return f"the next line comes after step {following}, in about {duration(wait)} (logging.interval {interval})"
