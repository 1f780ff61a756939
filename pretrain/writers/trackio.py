"""Trackio: the run in a local database, which ``trackio show`` shows in a browser."""

from __future__ import annotations

import contextlib
import io
import math
import uuid
from collections.abc import Mapping
from typing import Any

from pretrain.writers.base import Run, Writer


class TrackioWriter(Writer):
    """One Trackio run for the whole run, however many processes train it.

    Its database lies where Trackio keeps those of all projects (``TRACKIO_DIR``), not in the run folder.

    Args:
        run: the run.
        project, options: of ``trackio.init``; ``resume`` is the run's.
    """

    def __init__(self, run: Run, project: str = "smet", **options: Any):
        import trackio

        # Run folders of one name are several runs.
        name = run.state.get("name") or options.pop("name", f"{run.name}-{uuid.uuid4().hex[:6]}")
        options.pop("name", None)
        self._name, self._project = str(name), project
        with _greeting():
            self._run = trackio.init(
                project=project, name=self._name, config=_plain(run.settings), resume="allow", **options
            )

    def where(self) -> str:
        """See ``Writer``."""
        return f"trackio show --project {self._project} (run {self._name})"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Writer``."""
        self._run.log({tag: value for tag, value in values.items() if math.isfinite(value)}, step=step)

    def event(self, kind: str, text: str, step: int) -> None:
        """See ``Writer``."""
        self._run.log({f"events/{kind}": text}, step=step)

    def state(self) -> dict[str, Any]:
        """See ``Writer``."""
        return {"name": self._name}

    def close(self) -> None:
        """See ``Writer``."""
        with _greeting():
            self._run.finish()


def _greeting() -> contextlib.AbstractContextManager[Any]:
    """Keeps the lines off the screen with which Trackio begins and ends; ``where`` says what is in them."""
    return contextlib.redirect_stdout(io.StringIO())


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what Trackio keeps for itself."""
    return {key: value for key, value in settings.items() if not key.startswith("_")}
