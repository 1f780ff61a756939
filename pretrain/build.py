"""From settings to a DeepSpeed engine: its JSON, the optimizer, and the model around which both are put."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.checkpoint.masks import SavedMasks
from pretrain.config import RunConfig
from pretrain.engine import Engine, PipelineEngine, PlainEngine
from pretrain.errors import ConfigError, nearest
from pretrain.formula import formula_of, options_of
from pretrain.layout import Layout
from pretrain.models import inventory_of
from pretrain.parallel.groups import fill_up
from pretrain.parallel.part import Builder
from pretrain.parallel.pipeline import build_stages
from pretrain.plan.cut import stage_bounds
from smet import Remedies, parameter_groups
from smet.optim.aged import AgedOptimizer


class LossModel(nn.Module):
    """What the engine runs: token ids in, loss out; or what comes next."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, last: Tensor | None = None) -> Tensor:
        """Token ids ``(batch, seq + 1)`` to the mean cross-entropy of the ``seq`` predictions; with ``last``, those
        ``(batch, seq)`` to the logits ``(batch, vocabulary)`` that follow this position of each row."""
        if last is not None:
            logits: Tensor = self.model(tokens)
            return logits[torch.arange(len(last), device=last.device), last]
        loss: Tensor = self.model.loss(tokens)  # type: ignore[operator]
        return loss


def build_optimizer(groups: list[dict[str, Any]], config: RunConfig, external_clock: bool = True) -> AgedOptimizer:
    """The optimizer over dense and sparse groups, on the engine's clock or on its own.

    Raises:
        ConfigError: there is no such formula, or it does not have these options, or not here.
    """
    remedies = Remedies.of(config.sparsity)
    return AgedOptimizer(
        groups, formula_of(config), config.optimizer.lr, 0.0, remedies, external_clock, **options_of(config)
    )


def deepspeed_config(config: RunConfig, dp_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of this run; keys of the ``deepspeed`` section are merged on top."""
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation(dp_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            # Norms stay gathered; whatever is larger is partitioned, so that bytes at rest follow the plan.
            "stage3_param_persistence_threshold": inventory_of(config.model).shape.width,
        },
        "bf16": {"enabled": config.train.precision == "bf16"},
        "steps_per_print": 1 << 30,
        # Tensor-parallel ranks may hold different chunks of the stream, so pipelines must not split it again.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    return _merged(derived, config.deepspeed)


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def build_engine(
    config: RunConfig,
    layout: Layout,
    settings: dict[str, Any],
    saved: SavedMasks | None = None,
    first: Mapping[str, Tensor] | None = None,
) -> Engine:
    """The engine of this rank, with its part of the model. Collective.

    Args:
        config: the run's settings.
        layout: this rank's place.
        settings: DeepSpeed's JSON.
        saved, first: see ``Builder``.
    """
    import deepspeed
    import pydantic
    from deepspeed.runtime.config import DeepSpeedConfigError

    builder = Builder(config, layout, saved, first)
    if layout.stages == 1:
        whole = layout.agree(builder.whole)  # functions of a user's own choose first masks in there
        model: nn.Module = whole
        runnable: nn.Module = LossModel(whole)
    else:
        runnable, model = build_stages(builder, layout, stage_bounds(config))
    groups = parameter_groups(model, config.sparsity, config.optimizer.weight_decay)
    optimizer = build_optimizer(fill_up(groups, runnable, layout), config)
    mpu = None if layout.stages > 1 else layout.mpu()  # a pipeline brings its own
    try:
        engine, *_ = deepspeed.initialize(model=runnable, optimizer=optimizer, config=settings, mpu=mpu)
    except pydantic.ValidationError as error:
        raise ConfigError([_deepspeed_problem(error.title, problem) for problem in error.errors()]) from None
    except DeepSpeedConfigError as error:
        raise ConfigError(f"the section deepspeed is refused, DeepSpeed says: {' '.join(str(error).split())}") from None
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        if not config.deepspeed or not _read_settings(error):
            raise
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"the section deepspeed is refused, DeepSpeed says: {told}") from None
    return (PlainEngine if layout.stages == 1 else PipelineEngine)(engine, model, layout)


def _read_settings(error: Exception) -> bool:
    """Whether DeepSpeed raised ``error`` while it read its settings, few of whose kinds it looks at."""
    return any(frame.name == READING for frame in traceback.extract_tb(error.__traceback__))


READING = "_initialize_params"
"""DeepSpeed's method that reads its settings."""
CHECKED_BESIDE = {"CommsLoggerConfig": "comms_logger", "DeepSpeedThroughputTimerConfig": "timers.throughput"}
"""What DeepSpeed checks by type beside zero_optimization: its class to the section."""


def _deepspeed_problem(title: str, problem: Any) -> str:
    """One line about a value that DeepSpeed refuses.

    Args:
        title: the class that checks the section.
    """
    section = f"deepspeed.{CHECKED_BESIDE.get(title, 'zero_optimization')}"
    key = ".".join(str(part) for part in problem["loc"])
    if not key:  # of several keys together
        return f"{section} is refused, DeepSpeed says: {problem['msg']}"
    if problem["type"] != "extra_forbidden":
        return f"{section}.{key} is {problem['input']!r}, DeepSpeed says: {problem['msg']}"
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = () if title in CHECKED_BESIDE else DeepSpeedZeroConfig.model_fields
    return f"{section}.{key} is not a known key{nearest(key, known)}"
