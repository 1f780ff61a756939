"""Hands each step's record, and what happened, to the writers of the run file."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pretrain import outside
from pretrain.callbacks.base import Callback, Record
from pretrain.config import RunConfig
from pretrain.files import write_atomically
from pretrain.run_folder import RunFolder, RunReader
from pretrain.run_folder.reader import WRITERS
from pretrain.writers import Run, Spec, Writer, make
from pretrain.writers.tags import in_words, tagged

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


class Guarded:
    """A writer whose trouble is told once and counted: it must not end a run, nor part rank 0 from the others."""

    def __init__(self, name: str):
        self.name = name
        self.writer: Writer | None = None
        self.furthest = 0
        """Last step that was written, by this process or an earlier one."""
        self.calls = self.failures = 0
        self._told_of_repeats = False

    def open(self, spec: Spec, run: Run, furthest: int) -> dict[str, Any]:
        """Make the writer; returns what a later process needs of it."""
        self.furthest = furthest
        self.writer = self._try(lambda: make(spec, run))
        if self.writer is None:
            return {}
        if self.writer.replaces:
            self.furthest = min(furthest, run.step)
        print(f"  {'writer':11}{self.name}: {self._try(self.writer.where) or 'open'}", flush=True)
        return self._try(self.writer.state) or {}

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Hand on a step's figures; one that came before takes the place of the old one, or is left out."""
        writer = self.writer
        if writer is None:
            self._count(lost=True)
        elif step > self.furthest:
            self._try(lambda: writer.scalars(values, step))
            self.furthest = step
        elif writer.replaces:
            self._try(lambda: writer.rewind(step - 1))
            self._try(lambda: writer.scalars(values, step))
            self.furthest = step
        elif not self._told_of_repeats:
            self._told_of_repeats = True
            print(
                f"{self.name} keeps what it has of steps {step} to {self.furthest}, which come again: it cannot take "
                "steps back; metrics.jsonl has them as they are now",
                flush=True,
            )

    def event(self, kind: str, text: str, step: int) -> None:
        """Hand on an event."""
        writer = self.writer
        if writer is None:
            self._count(lost=True)
        else:
            self._try(lambda: writer.event(kind, text, max(step, self.furthest)))

    def close(self) -> None:
        """Close it, and say what did not get there."""
        if self.writer is not None:
            self._try(self.writer.close)
            self.writer = None
        if self.failures:
            print(
                f"warning: {self.failures} of {self.calls} writes to {self.name} failed and are missing there; the "
                "run folder has all",
                flush=True,
            )
            self.failures = 0

    def _try(self, action: Callable[[], Any]) -> Any:
        self._count()
        try:
            return action()
        except (Exception, SystemExit) as error:  # whatever a library of others raises: the run is not to end for it
            if not self.failures:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                print(
                    f"warning: writing to {self.name} failed ({text:.300}); the run goes on, and what is missing there "
                    "is counted",
                    flush=True,
                )
            self.failures += 1
            return None

    def _count(self, lost: bool = False) -> None:
        self.calls += 1
        self.failures += lost


class WritersCallback(Callback):
    """On the main rank, the writers of ``logging.writers``; nothing on the others.

    What a later process needs of them is in ``writers.json``: how far each was written, and what it calls the run.
    """

    name = "writers"

    def __init__(self, config: RunConfig, folder: RunFolder):
        self.specs, self.folder = config.logging.writers, folder
        self.writers: list[Guarded] = []
        self._events: deque[dict[str, Any]] = deque()
        self._states: dict[str, Any] = {}
        """What ``writers.json`` says; also of writers that this process has not."""
        # Asked now: what comes again is dropped from the metrics when the run begins to write.
        self._reached = RunReader(folder.path).reached().step if self.specs else 0
        if self.specs:
            folder.listeners.append(self._events.append)

    def on_start(self, trainer: Trainer) -> None:
        """Open them, where an earlier process left them."""
        if not trainer.layout.is_main or not self.specs:
            return
        self._states = self._known() if trainer.step else {}
        for spec in self.specs:
            before = self._states.get(spec.name, {})
            # Without a word of an earlier process, as in a branch, this is the first that writes.
            furthest = max(before.get("step", 0), self._reached) if before else 0
            run = Run(
                folder=self.folder.path, name=self.folder.path.resolve().name, settings=trainer.config.to_dict(),
                step=trainer.step, state=before.get("state", {}),
            )  # fmt: skip
            one = Guarded(spec.name)
            state = one.open(spec, run, furthest) or before.get("state", {})  # one that is away now may come back
            self._states[spec.name] = {"step": furthest, "state": state}
            self.writers.append(one)
        self._keep()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Hand on what happened, then the figures."""
        self._tell_events()
        if self.writers:
            values = tagged(record, trainer.topology.density)
            for one in self.writers:
                one.scalars(values, trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        """Hand on what happened last."""
        self._tell_events()

    def close(self) -> None:
        """Close them all, and note how far each was written."""
        self._tell_events()
        for one in self.writers:
            one.close()
            self._states[one.name]["step"] = one.furthest
        if self.writers:
            self.folder.listeners.clear()
            self._keep()
        self.writers = []

    def _tell_events(self) -> None:
        while self._events:
            event = self._events.popleft()
            for one in self.writers:
                one.event(str(event["kind"]), in_words(event), int(event["step"]))

    def _known(self) -> dict[str, Any]:
        """What earlier processes noted; nothing where that cannot be used."""
        try:
            found = outside.read_json(self.folder.path / WRITERS, outside.MEGABYTE)
        except (OSError, ValueError):
            return {}
        return {name: entry for name, entry in found.items() if _is_entry(entry)} if isinstance(found, dict) else {}

    def _keep(self) -> None:
        try:
            write_atomically(self.folder.path / WRITERS, json.dumps(self._states, indent=2) + "\n")
        except OSError as error:
            print(f"warning: {self.folder.path / WRITERS} cannot be written ({error.strerror})", flush=True)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("state"), dict)
