"""From settings to a sparse model, its optimizer and a DeepSpeed engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import RunConfig
from pretrain.model import LlamaForCausalLM, initial_weight
from smet import Remedies, SmetAdamW, parameter_groups, sparsify


class LossModel(nn.Module):
    """What the engine runs: token ids in, loss out."""

    def __init__(self, llama: LlamaForCausalLM):
        super().__init__()
        self.llama = llama

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``(batch, seq + 1)`` to the mean cross-entropy of the ``seq`` predictions."""
        return self.llama.loss(tokens)


def build_model(config: RunConfig) -> LlamaForCausalLM:
    """The sparse LLaMA in fp32 on the CPU; weights are a pure function of seed and parameter names.

    A layer is dense for as long as its active weights are picked, so no rank ever holds the dense model.
    """
    shape = config.model
    with torch.device("meta"):
        model = LlamaForCausalLM(shape, activation_checkpointing=config.train.activation_checkpointing)

    def fresh(name: str, like: Tensor) -> Tensor:
        return initial_weight(name, like.shape, seed=config.train.seed, std=shape.initializer_range)

    sparsify(model, config.sparsity, dense_source=lambda name, layer: fresh(f"{name}.weight", layer.weight))
    _materialize(model, fresh)
    return model


def _materialize(model: nn.Module, fresh: Any) -> None:
    """Give every parameter that is still on the meta device its initial values; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                full = f"{prefix}.{name}" if prefix else name
                made.setdefault(parameter, nn.Parameter(fresh(full, parameter)))
                setattr(module, name, made[parameter])


def build_optimizer(model: nn.Module, config: RunConfig) -> SmetAdamW:
    """``SmetAdamW`` over dense and sparse groups, on the engine's clock."""
    settings, sparsity = config.optimizer, config.sparsity
    return SmetAdamW(
        parameter_groups(model, sparsity, settings.weight_decay),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        remedies=Remedies(sparsity.bias_correction, sparsity.warmup_steps, sparsity.warmup_scope),
        external_clock=True,
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
            "stage3_param_persistence_threshold": config.model.hidden_size,
        },
        "bf16": {"enabled": config.train.precision == "bf16"},
        "steps_per_print": 1 << 30,
    }
    return _merged(derived, config.deepspeed)


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def build_engine(model: LlamaForCausalLM, optimizer: SmetAdamW, settings: dict[str, Any]) -> Any:
    """A ``DeepSpeedEngine`` whose ``engine(tokens)`` is the loss."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=LossModel(model), optimizer=optimizer, config=settings)
    return engine
