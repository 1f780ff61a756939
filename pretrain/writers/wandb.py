"""Weights & Biases: the run as one of a project, on its server or in files of the run folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from pretrain.writers.base import Run, Writer

Mode = Literal["online", "offline", "disabled", "shared"]


class WandbWriter(Writer):
    """One W&B run for the whole run, however many processes train it; ``step`` is W&B's own step.

    Without a key, or with ``WANDB_MODE=offline``, files in ``RUN/wandb`` take it all, which ``wandb sync`` sends later.

    Args:
        run: the run.
        project, mode, options: of ``wandb.init``; ``dir``, ``id`` and ``resume`` are the run's.
    """

    def __init__(self, run: Run, project: str = "smet", mode: Mode | None = None, **options: Any):
        import wandb

        self._id = str(run.state.get("id") or uuid.uuid4().hex[:8])
        settings = {"console": "off", "quiet": True, "silent": True, **options.pop("settings", {})}
        alone: Mode = "online" if wandb.api.api_key else "offline"
        told = os.environ.get("WANDB_MODE")
        self._run = wandb.init(
            project=project,
            id=self._id,
            resume="allow",
            dir=str(run.folder),
            name=options.pop("name", run.name),
            config=dict(run.settings),
            mode=mode or (None if told else alone),  # None: as the variable says
            settings=wandb.Settings(**settings),
            **options,
        )
        self._events: dict[str, str] = {}

    def where(self) -> str:
        """See ``Writer``."""
        if self._run.settings.mode == "online":
            return str(self._run.url)
        return f"wandb sync {self._run.settings.sync_dir}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Writer``."""
        self._run.log({**values, **self._events}, step=step)
        self._events = {}

    def event(self, kind: str, text: str, step: int) -> None:
        """See ``Writer``: W&B takes a row per step, so that it goes along with the next one."""
        tag = f"events/{kind}"
        self._events[tag] = f"{self._events[tag]}\n{text}" if tag in self._events else text

    def state(self) -> dict[str, Any]:
        """See ``Writer``."""
        return {"id": self._id}

    def close(self) -> None:
        """See ``Writer``."""
        if self._events:
            self._run.log(self._events)
        self._run.finish()
