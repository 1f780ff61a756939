"""TensorBoard: event files below the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.writers.base import Run, Writer


class TensorBoardWriter(Writer):
    """Files in ``RUN/tensorboard``; ``tensorboard --logdir runs`` shows all runs.

    Each file begins with the step from which on it takes the place of those before it.
    """

    replaces = True

    def __init__(self, run: Run):
        self._folder = run.folder / "tensorboard"
        self._writer = self._open(run.step)

    def _open(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=step + 1)

    def where(self) -> str:
        """See ``Writer``."""
        return f"tensorboard --logdir {self._folder}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Writer``."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def event(self, kind: str, text: str, step: int) -> None:
        """See ``Writer``."""
        self._writer.add_text(f"events/{kind}", text, step)

    def rewind(self, step: int) -> None:
        """See ``Writer``."""
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        """See ``Writer``."""
        self._writer.close()
