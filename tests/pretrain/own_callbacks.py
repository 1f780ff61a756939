"""Callbacks that a user may write, outside the packages; run files name them as ``package.module:Class``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pretrain.callbacks.base import Callback, Record
from pretrain.trainer import Trainer


class Diary(Callback):
    """Writes down, on every rank, which hook was called at which step, and adds to the record."""

    def __init__(self, folder: str, every: int = 1):
        self.folder, self.every, self.seen = Path(folder), every, 0
        self.lines: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.rank = trainer.layout.rank
        self.lines.append(f"on_start {trainer.step} seen {self.seen}")

    def before_step(self, trainer: Trainer) -> None:
        self.lines.append(f"before_step {trainer.step}")

    def before_update(self, trainer: Trainer) -> None:
        self.lines.append(f"before_update {trainer.step}")

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.seen += 1
        known = sorted({"validation_loss", "topology", "steps_skipped", "grad_norm"} & record.keys())
        self.lines.append(f"after_step {trainer.step} knows {' '.join(known)}")
        if trainer.step % self.every == 0:
            record["seen_so_far"] = trainer.layout.mean(torch.tensor(float(self.seen)))

    def on_end(self, trainer: Trainer) -> None:
        self.lines.append(f"on_end {trainer.step}")

    def close(self) -> None:
        with open(self.folder / f"diary-{self.rank}.txt", "a") as file:
            file.write("\n".join([*self.lines, "close", ""]))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Twin(Callback):
    name = "guard"


class NoCallback:
    pass
