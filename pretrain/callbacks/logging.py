"""What a run tells: metrics.jsonl, TensorBoard, and lines on the screen."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.numbers import duration
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import METRICS

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class MetricsCallback(Callback):
    """One JSON object per step in ``metrics.jsonl``; the same numbers in TensorBoard if asked for."""

    name = "metrics"

    def __init__(self, folder: RunFolder, tensorboard: bool):
        self.folder, self.tensorboard = folder, tensorboard
        self._writer: Any = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gone back, perhaps to steps that are in TensorBoard: its next file begins with what takes their place."""
        self.close()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the record of this step."""
        if not trainer.layout.is_main:
            return
        numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        # JSON has no infinity: an overflow's gradient norm is written as null.
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in numbers.items()}
        self.folder.append(METRICS, finite)
        if self.tensorboard:
            self._write_events(numbers, trainer.step)

    def _write_events(self, numbers: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard drops what earlier files have of this step and later ones.
            self._writer = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=step)
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class ProgressCallback(Callback):
    """A line every ``logging.interval`` steps, at updates and evaluations."""

    name = "progress"

    def __init__(self) -> None:
        self._begin = 0.0
        self._first = 0

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock for the estimate of the time left."""
        self._begin, self._first = time.perf_counter(), trainer.step

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Print what is due."""
        if not trainer.layout.is_main:
            return
        notable = "topology" in record or "validation_loss" in record or record["step"] == trainer.total_steps
        if notable or record["step"] % trainer.config.logging.interval == 0:
            print(self._line(trainer, record), flush=True)

    def _line(self, trainer: Trainer, record: Record) -> str:
        done = trainer.step - self._first
        left = (trainer.total_steps - trainer.step) * (time.perf_counter() - self._begin) / max(1, done)
        parts = [
            f"step {trainer.step}/{trainer.total_steps}",
            f"loss {record['loss']:.4f}",
            f"lr {record['lr']:.2e}",
            f"grad {record['grad_norm']:.2f}",
            f"{record['tokens_per_second']:,.0f} tokens/s",
            f"left {duration(left)}",
        ]
        if "validation_loss" in record:
            parts.append(
                f"validation loss {record['validation_loss']:.4f} (perplexity {record['validation_perplexity']:.2f})"
            )
        if "topology" in record:
            report = record["topology"]
            closed = f"{report.pruned - report.grown:,} tiles closed, " if report.pruned > report.grown else ""
            stay = f", {report.unmoved:,} stay for want of a place" if report.unmoved else ""
            now = f", density {record['density']:.3g}" if "density" in record else ""
            parts.append(
                f"topology update {report.update}: {closed}{report.grown:,} tiles moved{stay} in"
                f" {report.seconds:.2f} s{now}"
            )
        return "  ".join(parts)
