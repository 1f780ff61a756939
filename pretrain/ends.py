"""The last line of a run: what came of it, what is saved where, and the command that goes on."""

from __future__ import annotations

from pretrain.command import again, told
from pretrain.numbers import so_far
from pretrain.run_folder import RunReader
from pretrain.trainer import Trainer


def why_ended(trainer: Trainer, first: int) -> str:
    """In a few words, why the run that began after step ``first`` ended; for the screen and for events.jsonl."""
    if trainer.step >= trainer.total_steps:
        return "complete" if trainer.step > first else "was complete"
    if trainer.stop_reason and trainer.step < trainer.last_step:
        return trainer.stop_reason
    return "train.stop_at" if trainer.step > first else "was at train.stop_at"


def last_line(trainer: Trainer, first: int) -> str:
    """The last line of a run that ended in order, and began after step ``first``."""
    why, step, total, folder = why_ended(trainer, first), trainer.step, trainer.total_steps, trainer.folder
    where = RunReader(folder.path).saved()
    if why == "complete":
        run = str(folder.path)
        return (
            f"done: {step} steps, {where}; to see it: {told('plot', run)}; to use it: {told('export', run, 'OUT')}; to "
            f"have it write: {told('generate', run, 'TEXT')}"
        )
    if why == "was complete":
        return (
            f"nothing to do: the run is at step {step} and train.steps is {total}; {where}; to train on: "
            f"{again('train.steps=N')} with N above {step}, which lays the schedules out anew, and says how"
        )
    if why == "was at train.stop_at":
        return (
            f"nothing to do: the run is at step {step} and train.stop_at is {trainer.config.train.stop_at}; {where}; "
            f"to go on: {again('train.stop_at=0')}"
        )
    command = again("train.stop_at=0") if why == "train.stop_at" else again()
    return f"stopped after step {so_far(step, total)} ({why}); {where}; to go on: {command}"


def broken_line(trainer: Trainer) -> str:
    """The last line but the error's of a run that did not end in order."""
    return f"ended after step {so_far(trainer.step, trainer.total_steps)}; {RunReader(trainer.folder.path).saved()}"
