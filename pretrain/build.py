"""From settings to a sparse model, its optimizer and a DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.checkpoint.masks import SavedMasks
from pretrain.config import RunConfig
from pretrain.config.checks import linear_shapes
from pretrain.engine import Engine, PipelineEngine, PlainEngine
from pretrain.errors import ConfigError, nearest
from pretrain.layout import Layout
from pretrain.model import LlamaForCausalLM, initial_weight
from pretrain.parallel import tensor
from pretrain.parallel.pipeline import block_costs, build_stages, nest
from smet import Remedies, SmetAdamW, parameter_groups, sparsify
from smet.convert import Piece, selects
from smet.distribution import layer_densities
from smet.mask import BlockGrid


class LossModel(nn.Module):
    """What the engine runs: token ids in, loss out."""

    def __init__(self, llama: LlamaForCausalLM):
        super().__init__()
        self.llama = llama

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``(batch, seq + 1)`` to the mean cross-entropy of the ``seq`` predictions."""
        return self.llama.loss(tokens)


class Builder:
    """Builds this rank's part of the sparse LLaMA, in fp32 on the CPU.

    Initial weights and masks are a pure function of seed and names, whatever the layout. A layer is
    dense only while its active weights are picked, so no rank ever holds the dense model.

    Args:
        config: the run's settings.
        layout: this rank's place.
        saved: masks of the checkpoint that is about to be loaded; sparse layers get these, and no values yet.
    """

    def __init__(self, config: RunConfig, layout: Layout, saved: SavedMasks | None = None):
        self.config, self.layout, self.saved = config, layout, saved
        self.parts = tensor.parts(layout, config.parallel.sequence)
        self.recompute = config.train.activation_checkpointing
        self.eos_id = config.data.eos_id if config.data.reset_attention else None
        shapes = {name: (o, i) for name, o, i in linear_shapes(config.model) if selects(name, config.sparsity)}
        if not shapes:
            raise ConfigError(
                f"sparsity.include {list(config.sparsity.include)} minus exclude {list(config.sparsity.exclude)} "
                "selects no linear layer; loosen the patterns"
            )
        sparsity = config.sparsity
        self.densities = dict(layer_densities(shapes, sparsity.density, sparsity.distribution))

    def whole(self) -> LlamaForCausalLM:
        """All layers of this tensor-parallel rank, connected to the other ranks."""
        with torch.device("meta"):
            model = LlamaForCausalLM(
                self.config.model, self.parts, activation_checkpointing=self.recompute, eos_id=self.eos_id
            )
        self._fill(model)
        tensor.connect(model, self.layout, self.config.parallel.sequence)
        return model

    def block(self, name: str, maker: Callable[[], nn.Module]) -> nn.Module:
        """One block under its name in the whole model, connected to the other tensor-parallel ranks."""
        with torch.device("meta"):
            root = nest({name: maker()})
        self._fill(root)
        tensor.connect(root, self.layout, self.config.parallel.sequence)
        return root.get_submodule(name)

    def _fill(self, model: nn.Module) -> None:
        """Make the selected layers sparse, and give every parameter that is still on meta its values."""
        masks = None if self.saved is None else self._saved_mask
        piece = Piece(self.layout.tensor_rank, self.layout.tensor_size, self.densities, masks)
        sparsify(model, self.config.sparsity, dense_source=self._dense, piece=piece)
        self._store_transposed(model)
        made: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
        for prefix, module in model.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:
                    if parameter not in made:
                        made[parameter] = nn.Parameter(self._initial(f"{prefix}.{name}", parameter))
                    setattr(module, name, made[parameter])

    def _store_transposed(self, model: nn.Module) -> None:
        """Row-parallel layers that stay dense are stored as full ``SparseLinear``s, in canonical order.

        So their shards too are contiguous ranges of one logical vector, and any layout reads any other's.
        """
        full = Piece(self.layout.tensor_rank, self.layout.tensor_size, {n: 1.0 for n, _ in model.named_modules()})
        dense = replace(self.config.sparsity, include=self.config.sparsity.row_parallel, exclude=(), block=(1, 1))
        sparsify(model, dense, dense_source=self._dense, piece=full)

    def _saved_mask(self, name: str, grid: BlockGrid, active: int) -> Tensor | None:
        assert self.saved is not None
        return self.saved.shard(name, grid, self.layout.tensor_rank, self.layout.tensor_size, active)

    def _dense(self, name: str, layer: nn.Linear) -> Tensor:
        return self._initial(f"{name}.weight", layer.weight)

    def _initial(self, name: str, like: Tensor) -> Tensor:
        shape = tensor.whole_shape(name, like.shape, self.layout)
        whole = initial_weight(name, shape, seed=self.config.train.seed, std=self.config.model.initializer_range)
        return tensor.shard(name, whole, self.layout).contiguous()


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
    costs: list[float] | None = None,
) -> Engine:
    """The engine of this rank, with its part of the model. Collective.

    Args:
        config: the run's settings.
        layout: this rank's place.
        settings: DeepSpeed's JSON.
        saved: see ``Builder``.
        costs: relative costs of the blocks, for the cut into pipeline stages; None = measure them.
    """
    import deepspeed
    import pydantic

    builder = Builder(config, layout, saved)
    if layout.stages == 1:
        costs = None
        whole = builder.whole()
        model: nn.Module = whole
        runnable: nn.Module = LossModel(whole)
    else:
        costs = costs or block_costs(builder, config, layout)
        runnable, model = build_stages(config.model, builder, layout, costs)
    optimizer = build_optimizer(model, config)
    mpu = None if layout.stages > 1 else layout.mpu()  # a pipeline brings its own
    try:
        engine, *_ = deepspeed.initialize(model=runnable, optimizer=optimizer, config=settings, mpu=mpu)
    except pydantic.ValidationError as error:
        raise ConfigError([_deepspeed_problem(problem) for problem in error.errors()]) from None
    return PlainEngine(engine, model, layout) if costs is None else PipelineEngine(engine, model, layout, costs)


def _deepspeed_problem(problem: Any) -> str:
    """One line about a value that DeepSpeed refuses; only its zero_optimization section is checked by type."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"deepspeed.zero_optimization.{key} is {problem['input']!r}, DeepSpeed says: {problem['msg']}"
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return f"deepspeed.zero_optimization.{key} is not a known key{nearest(key, DeepSpeedZeroConfig.model_fields)}"
