"""What of a run's settings decides how its model is used here; checked, since a checkpoint may come from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pretrain.checkpoint.folder import STATE
from pretrain.config.schema import DataConfig, EvaluationConfig, TrainConfig
from pretrain.config.typed import build, problems_of
from pretrain.errors import CheckpointError

from ..checkpoints.reader import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Of the run that saved a checkpoint."""

    data: DataConfig
    evaluation: EvaluationConfig
    train: TrainConfig
    ranks: int
    """Data-parallel ranks."""
    stages: int
    """Of the pipeline."""
    chosen: dict[str, Any]
    """Who multiplied in which shape of layers, where that was measured; see ``pretrain.products``."""


def settings_of(checkpoint: Checkpoint, longest: int) -> RunSettings:
    """The settings of the run that saved ``checkpoint``; an imported model has few, and defaults stand for the rest.

    Args:
        longest: tokens of the model's context.

    Raises:
        CheckpointError: they are of no use.
    """
    problems: list[str] = []
    data = _section(checkpoint, DataConfig, "data", {"seq_length": longest}, problems)
    evaluation = _section(checkpoint, EvaluationConfig, "evaluation", {}, problems)
    given = {"steps": 1, "global_batch_size": 1, "output_dir": "unknown", "precision": "fp32"}
    train = _section(checkpoint, TrainConfig, "train", given, problems)
    layout = checkpoint.manifest["layout"]
    degrees = [layout.get(name, 1) for name in ("data", "pipeline")]
    problems += [f"layout has {size!r:.40} ranks" for size in degrees if not isinstance(size, int) or size < 1]
    if problems:
        raise CheckpointError(f"{checkpoint.folder / STATE} does not say how it was trained: {problems[0]}")
    chosen = (checkpoint.manifest.get("products") or {}).get("chosen", {})
    return RunSettings(
        data=data, evaluation=evaluation, train=train, ranks=degrees[0], stages=degrees[1], chosen=chosen
    )


def _section(checkpoint: Checkpoint, kind: type[T], name: str, given: dict[str, Any], problems: list[str]) -> T:
    """A section as this version reads it; keys of other versions are left out."""
    known = {part.name for part in fields(kind)}  # type: ignore[arg-type]
    saved = {key: value for key, value in checkpoint.section(name).items() if key in known and value is not None}
    made, _ = build(kind, {**given, **saved}, name, problems)
    if name != "data" or saved.keys() & {"train", "curriculum"}:
        problems += [] if problems else problems_of(name, made)
    return made
