"""Skips steps whose loss or gradient norm spikes, and goes back to a checkpoint when skipping does not help."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.callbacks.base import Callback, Record
from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.load import problems_of
from pretrain.checkpoint.save import Saver
from pretrain.config.operation import GuardConfig
from pretrain.errors import DivergenceError
from pretrain.run_folder import RunFolder
from pretrain.stability import RobustWindow

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

Reload = Callable[["Trainer", Path], None]


class GuardCallback(Callback):
    """Watches every step. All ranks decide alike: from global values, and together.

    A spiking step is left out before its update, as after an overflow: weights, ages and topology stay. After
    ``max_skips`` skips within a window the run goes back to its newest whole checkpoint from before the
    first of them, and passes over the samples of the skipped steps. Each event is a line of ``events.jsonl``.

    Args:
        config: thresholds and bounds.
        folder: gets the events.
        saver: asked to finish before a checkpoint is read.
        reload: loads a checkpoint into the trainer.

    Raises:
        DivergenceError: out of rollbacks, or nothing to go back to; on every rank.
    """

    name = "guard"

    def __init__(self, config: GuardConfig, folder: RunFolder, saver: Saver, reload: Reload):
        self.config, self.folder, self.saver, self.reload = config, folder, saver, reload
        self.loss = RobustWindow(config.window, floor=0.02)
        self.norm = RobustWindow(config.window, floor=0.0)
        self.skips: list[tuple[int, int]] = []
        """(step, first sample) of the recent skips that are not dealt with yet."""
        self.skipped = 0
        self.rollbacks = 0
        self._trainer: Trainer | None = None
        self._norm = math.inf
        self._why = ""

    def on_start(self, trainer: Trainer) -> None:
        """From now on the engine asks before each update."""
        self._trainer = trainer
        if self.config.enabled:
            trainer.engine.veto(self.decide)

    def decide(self, norm: float) -> bool:
        """Whether to leave this step out, given its global gradient norm. Collective."""
        assert self._trainer is not None
        layout = self._trainer.layout
        loss = layout.known_mean(self._trainer.engine.current_loss())
        self._norm, self._why = norm, self._spike(loss, norm)
        skip = layout.any(bool(self._why))
        if skip and not self._why:
            self._why = "spike seen by another rank"
        return skip

    def _spike(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"loss {loss}"
        high = self.loss.deviations(loss)
        if 0 < self.config.loss_deviations < high:
            return f"loss {loss:.4g} is {high:.1f} deviations above the last {len(self.loss.values)} steps"
        high = self.norm.deviations(math.log(max(norm, 1e-30)))
        if 0 < self.config.norm_deviations < high:
            return f"gradient norm {norm:.4g} is {high:.1f} deviations above the last {len(self.norm.values)} steps"
        return ""

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Take note of the step, applied or skipped."""
        if record["skipped"]:
            record["grad_norm"] = min(record["grad_norm"], self._norm)  # what stops DeepSpeed it calls infinite
            self._note_skip(trainer, record)
        else:
            self.loss.add(record["loss"])
            self.norm.add(math.log(max(record["grad_norm"], 1e-30)))
        self._norm, self._why = math.inf, ""
        record["steps_skipped"] = self.skipped

    def _note_skip(self, trainer: Trainer, record: Record) -> None:
        why = self._why or "gradients not finite"
        first = trainer.consumed_samples - trainer.config.train.global_batch_size
        self.skipped += 1
        self.skips = [skip for skip in self.skips if skip[0] > trainer.step - self.config.window]
        self.skips.append((trainer.step, first))
        if not trainer.layout.is_main:
            return
        print(f"step {trainer.step}: {why}; step skipped ({self.skipped} skipped so far)", flush=True)
        samples = [first, trainer.consumed_samples]
        self.folder.append_event(
            "skip", trainer.step, why=why, loss=record["loss"], grad_norm=self._norm, samples=samples
        )

    def before_step(self, trainer: Trainer) -> None:
        """Go back, if skipping did not help."""
        if len(self.skips) >= self.config.max_skips:
            self._roll_back(trainer)

    def _roll_back(self, trainer: Trainer) -> None:
        layout, (first, _), last = trainer.layout, self.skips[0], trainer.step
        advice = "lower optimizer.lr or its warm-up's slope, look at the data of the samples in events.jsonl"
        if self.rollbacks >= self.config.max_rollbacks:
            raise DivergenceError(
                f"{len(self.skips)} of the last {self.config.window} steps were skipped after step {first - 1}, and "
                f"guard.max_rollbacks {self.config.max_rollbacks} are used up; {advice}, or raise guard.max_rollbacks"
            )
        self.saver.finish()
        target = self._good_checkpoint(trainer, first)
        if target is None:
            raise DivergenceError(
                f"{len(self.skips)} of the last {self.config.window} steps were skipped from step {first} on, and "
                f"there is no checkpoint from before; {advice}, or set checkpoint.interval"
            )
        batch = trainer.config.train.global_batch_size
        bad = [(sample, sample + batch) for _, sample in self.skips]
        passed, rollbacks, skipped = trainer.passed_over + bad, self.rollbacks + 1, self.skipped
        layout.agree(lambda: self._abandon(target) if layout.is_main else None)
        self.reload(trainer, target)
        trainer.passed_over = sorted(set(trainer.passed_over) | set(passed))
        self.rollbacks, self.skipped, self.skips = rollbacks, skipped, []
        if layout.is_main:
            print(
                f"step {last}: {len(bad)} steps skipped; back to {target.name}, passing over the samples of those "
                f"steps (rollback {rollbacks} of at most {self.config.max_rollbacks})",
                flush=True,
            )
            self.folder.append_event("rollback", last, to=trainer.step, samples=bad, rollbacks=rollbacks)

    def _good_checkpoint(self, trainer: Trainer, first: int) -> Path | None:
        """The newest whole checkpoint from before step ``first``. Collective."""
        found = trainer.layout.agree(lambda: folders.published(self.folder.checkpoints))
        for path in reversed([path for path in found if folders.step_of(path) < first]):
            if not problems_of(path, trainer.layout):
                return path
        return None

    def _abandon(self, target: Path) -> None:
        """Drop what came after ``target``: metrics of steps that are done again, and checkpoints from between."""
        step = folders.step_of(target)
        self.folder.forget_after(step)
        folders.drop_after(self.folder.checkpoints, step)

    def state_dict(self) -> dict[str, Any]:
        """The recent past and the counts."""
        return {
            "loss": self.loss.state_dict(),
            "norm": self.norm.state_dict(),
            "skips": self.skips,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.loss.load_state_dict(state["loss"])
        self.norm.load_state_dict(state["norm"])
        self.skips = [(step, sample) for step, sample in state["skips"]]
        self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
