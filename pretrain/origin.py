"""Where a run goes on from: a verified checkpoint of its own or of another folder, over the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.changes import bend
from pretrain.checkpoint.load import choose
from pretrain.checkpoint.permutation import require_same_permutation
from pretrain.checkpoint.resume import require_same_data, require_same_formula
from pretrain.checkpoint.state import read_state
from pretrain.config import RunConfig
from pretrain.layout import Layout
from pretrain.run_folder import RunFolder
from pretrain.trainer import Trainer


@dataclass(frozen=True)
class Origin:
    """A checkpoint and its small state."""

    path: Path
    state: dict[str, Any]

    def what_bends(self, trainer: Trainer) -> list[str]:
        """Lines about settings that differ from the checkpoint's; noted in the events too. Main rank only.

        Nothing for an imported model, which no settings have trained.
        """
        found = None if self.state["probe"] is None else bend(self.state["config"], trainer.config, trainer.step)
        if found is None:
            return []
        trainer.folder.append_event("settings", trainer.step, **found.event())
        return found.lines(self.path)


def origin_of(config: RunConfig, folder: RunFolder, layout: Layout, fingerprint: str) -> Origin | None:
    """What the run goes on from; None: it begins. Collective.

    Args:
        fingerprint: of the training data.

    Raises:
        CheckpointError: nothing usable where something should be, or it was trained on other data, by another
            optimizer, or with other permutations of features.
    """
    given = config.checkpoint.resume
    resume = layout.gather_objects(layout.agree(lambda: folder.resume_from(given)))[0]
    path = choose(resume, folder.checkpoints, layout)
    if resume != given and layout.is_main:
        print(f"{folder.path} began from {given} before, and goes on from its own checkpoint", flush=True)
    if path is None:
        return None
    state = layout.agree(lambda: read_state(path))
    layout.agree(lambda: require_same_data(state, config, fingerprint, path))
    layout.agree(lambda: require_same_formula(state, config, path))
    layout.agree(lambda: require_same_permutation(state, config, path) if layout.is_main else None)
    return Origin(path, state)
