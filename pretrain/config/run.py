"""``RunConfig``: the sections of one run together, and the file they are written to."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.config.checks import cross_problems
from pretrain.config.operation import GuardConfig, OperationConfig
from pretrain.config.optimizer import OptimizerConfig
from pretrain.config.schema import (
    CallbackConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    TrainConfig,
)
from pretrain.config.typed import problems_of, rebuilt
from pretrain.config.yaml_text import to_yaml
from pretrain.errors import ConfigError
from pretrain.models.family import FamilyConfig
from smet.config import SmetConfig

NO_DATACLASS = ("deepspeed", "callbacks")
"""Sections that are a mapping of somebody else's keys, or a list."""


@dataclass(kw_only=True)
class RunConfig:
    """All settings of one run, resolved: every base file, preset and override is applied."""

    model: FamilyConfig
    """Keys of the family that ``model.family`` names."""
    sparsity: SmetConfig = field(default_factory=SmetConfig)
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    operation: OperationConfig = field(default_factory=OperationConfig)
    callbacks: tuple[CallbackConfig, ...] = ()
    """Callbacks of the user's own, in the order in which they are called."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further keys of the DeepSpeed JSON, passed through; those this file derives are refused."""

    def problems(self) -> list[str]:
        """Every problem of every section, and of sections that do not fit each other."""
        sections = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        plain = {name: sections.pop(name) for name in NO_DATACLASS}
        own = [problem for name, part in sections.items() for problem in problems_of(name, part)]
        own += [text for n, one in enumerate(self.callbacks) for text in one.problems(f"callbacks[{n}]")]
        sound = {name: part for name, part in sections.items() if not rebuilt(name, part)[1]}
        return own + cross_problems({**sound, **plain})

    def check(self) -> RunConfig:
        """Return self, or raise ``ConfigError`` with all problems."""
        if found := self.problems():
            raise ConfigError(found)
        return self

    def accumulation(self, dp_size: int) -> int:
        """Micro-batches per optimizer step on ``dp_size`` data-parallel ranks.

        Raises:
            ConfigError: global_batch_size is no multiple of micro_batch_size * dp_size.
        """
        batch, micro = self.train.global_batch_size, self.train.micro_batch_size
        once = micro * dp_size
        if batch % once == 0:
            return batch // once
        lower, upper = batch // once * once, (batch // once + 1) * once
        remedies = [f"global_batch_size to {' or '.join(str(size) for size in (lower, upper) if size)}"]
        if batch % dp_size == 0:
            per_rank = batch // dp_size
            fitting = max(size for size in range(1, min(micro, per_rank) + 1) if per_rank % size == 0)
            remedies.append(f"micro_batch_size to {fitting}")
        raise ConfigError(
            f"train.global_batch_size is {batch}, expected a multiple of micro_batch_size {micro} x"
            f" {dp_size} data-parallel ranks = {once}; set {', or '.join(remedies)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as a YAML or JSON file holds them."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def to_yaml(self) -> str:
        """The resolved settings as a run file that loads back to an equal object."""
        return to_yaml(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``to_yaml()`` to ``path``; a reader sees the old file or the whole new one."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with outside.open_own(temporary, "w") as file:
            file.write(self.to_yaml())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
