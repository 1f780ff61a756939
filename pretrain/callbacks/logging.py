"""What a run tells: metrics.jsonl, TensorBoard, and lines on the screen."""

from __future__ import annotations

import math
import time
from typing import Any

from pretrain.callbacks.base import Callback, Record
from pretrain.run_folder import RunFolder
from pretrain.trainer import Trainer


class MetricsCallback(Callback):
    """One JSON object per step in ``metrics.jsonl``; the same numbers in TensorBoard if asked for."""

    name = "metrics"

    def __init__(self, folder: RunFolder, tensorboard: bool):
        self.folder, self.tensorboard = folder, tensorboard
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Open TensorBoard's event file."""
        if self.tensorboard and trainer.layout.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=trainer.step + 1)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the record of this step."""
        if not trainer.layout.is_main:
            return
        numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        # JSON has no infinity: an overflow's gradient norm is written as null.
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in numbers.items()}
        self.folder.append("metrics.jsonl", finite)
        if self._writer is not None:
            for key, value in numbers.items():
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()


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
            parts.append(f"topology update {report.update}: {report.grown:,} blocks moved in {report.seconds:.2f} s")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``; ``4000`` -> ``1h06m``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
