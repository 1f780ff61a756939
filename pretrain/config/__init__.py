"""The settings of one run: dataclasses (``schema``), cross-checks (``checks``) and YAML files (``load``)."""

from __future__ import annotations

from pretrain.config.load import config_from_dict, load_config
from pretrain.config.optimizer import OptimizerConfig
from pretrain.config.run import RunConfig
from pretrain.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    Source,
    Stage,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RunConfig",
    "Source",
    "Stage",
    "TrainConfig",
    "config_from_dict",
    "load_config",
]
