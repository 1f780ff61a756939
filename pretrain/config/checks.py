"""Checks that need more than one section of a run file.

Each check is a function of the sections it names as parameters. ``cross_problems`` calls those whose
sections are all at hand, so that a section with a mistyped key hides no problem of the others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pretrain.errors import nearest

if TYPE_CHECKING:
    from pretrain.config.schema import (
        DataConfig,
        EvaluationConfig,
        ModelConfig,
        OptimizerConfig,
        ParallelConfig,
        TrainConfig,
    )
    from smet.config import SmetConfig

DEEPSPEED_OWNED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "the optimizer section",
    "scheduler": "optimizer.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
}
"""Keys of the DeepSpeed JSON that are derived from other sections, and where to set them instead."""

DEEPSPEED_KEYS = (
    "activation_checkpointing", "aio", "autotuning", "checkpoint", "comet", "comms_logger", "communication_data_type",
    "compile", "csv_monitor", "data_efficiency", "data_types", "dataloader_drop_last",
    "disable_allgather", "disable_python_gc", "dump_state", "elasticity", "expert_parallel", "flops_profiler",
    "gradient_allreduce_op", "gradient_predivide_factor", "log_level", "managed_gradient_accumulation",
    "memory_breakdown", "pipeline", "prescale_gradients", "seq_parallel_communication_data_type", "steps_per_print",
    "tensor_parallel", "tensorboard", "timers", "torch_autocast", "wall_clock_breakdown", "wandb",
    "weight_quantization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip
"""The other keys that deepspeed 0.19.8 reads; it passes over any that it does not know without a word."""


def linear_shapes(model: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Yield (module name, outputs, inputs) of every linear layer, decoder layers first."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    parts = (
        ("self_attn.q_proj", queries, hidden),
        ("self_attn.k_proj", keys, hidden),
        ("self_attn.v_proj", keys, hidden),
        ("self_attn.o_proj", hidden, queries),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    )
    for layer in range(model.num_hidden_layers):
        for name, outputs, inputs in parts:
            yield f"model.layers.{layer}.{name}", outputs, inputs
    yield "lm_head", model.vocab_size, hidden


def cross_problems(sections: dict[str, Any]) -> list[str]:
    """Every way in which the given sections (name -> dataclass) do not fit each other."""
    found = []
    for check in _CHECKS:
        names = list(inspect.signature(check).parameters)
        if all(name in sections for name in names):
            found += check(**{name: sections[name] for name in names})
    return found


def _sequence_fits(model: ModelConfig, data: DataConfig) -> list[str]:
    if data.seq_length <= model.max_position_embeddings:
        return []
    return [
        f"data.seq_length is {data.seq_length}, expected at most model.max_position_embeddings"
        f" {model.max_position_embeddings}; lower the one or raise the other"
    ]


def _blocks_fit(model: ModelConfig, sparsity: SmetConfig, parallel: ParallelConfig) -> list[str]:
    if len(sparsity.block) != 2 or min(sparsity.block) < 1 or model.problems():
        return []
    rows, columns = sparsity.block
    misfits: dict[str, str] = {}
    for name, outputs, inputs in linear_shapes(model):
        if not _is_sparse(name, sparsity):
            continue
        transposed = any(fnmatchcase(name, pattern) for pattern in sparsity.row_parallel)
        height, width = (inputs, outputs) if transposed else (outputs, inputs)
        # Tensor parallelism cuts the canonical matrix along its rows; _tensor_fits tells if it cannot.
        shard = height // parallel.tensor if parallel.tensor > 0 and height % parallel.tensor == 0 else height
        if shard % rows or width % columns:
            kind = re.sub(r"\.\d+\.", ".*.", name)
            misfits.setdefault(kind, f"{kind} {shard} x {width}{' (transposed)' if transposed else ''}")
    if not misfits:
        return []
    split = f" on {parallel.tensor} tensor-parallel ranks" if parallel.tensor > 1 else ""
    return [
        f"sparsity.block is [{rows}, {columns}], expected sides that divide every sparse layer's rows x columns{split};"
        f" these do not fit: {', '.join(misfits.values())}"
    ]


def _is_sparse(name: str, sparsity: SmetConfig) -> bool:
    included = any(fnmatchcase(name, pattern) for pattern in sparsity.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in sparsity.exclude)


def _tensor_fits(model: ModelConfig, data: DataConfig, parallel: ParallelConfig) -> list[str]:
    split = {
        "model.num_attention_heads": model.num_attention_heads,
        "model.num_key_value_heads": model.num_key_value_heads,
        "model.intermediate_size": model.intermediate_size,
        "model.vocab_size": model.vocab_size,
        **({"data.seq_length": data.seq_length} if parallel.sequence else {}),
    }
    if parallel.tensor < 2:
        return []
    return [
        f"{name} is {size}, expected a multiple of parallel.tensor {parallel.tensor}, whose ranks share it evenly"
        for name, size in split.items()
        if size % parallel.tensor
    ]


def _stages_fit(model: ModelConfig, parallel: ParallelConfig) -> list[str]:
    if parallel.pipeline <= model.num_hidden_layers:
        return []
    return [
        f"parallel.pipeline is {parallel.pipeline}, expected at most model.num_hidden_layers"
        f" {model.num_hidden_layers}: each stage needs a decoder layer"
    ]


def _warmup_fits(optimizer: OptimizerConfig, train: TrainConfig) -> list[str]:
    if optimizer.warmup_steps <= train.steps:
        return []
    return [
        f"optimizer.warmup_steps is {optimizer.warmup_steps}, expected at most train.steps {train.steps}:"
        " the learning rate would never reach its peak"
    ]


def _evaluation_has_data(data: DataConfig, evaluation: EvaluationConfig) -> list[str]:
    if evaluation.interval == 0 or data.validation:
        return []
    return [
        f"evaluation.interval is {evaluation.interval} without data.validation, expected a validation corpus,"
        " or interval 0"
    ]


def _deepspeed_is_known_and_not_derived(deepspeed: dict[str, Any]) -> list[str]:
    found = [
        f"deepspeed.{key} is derived, expected no such key here; set {instead}"
        for key, instead in DEEPSPEED_OWNED.items()
        if key in deepspeed
    ]
    found += [
        f"deepspeed.{key} is not a known key of DeepSpeed{nearest(str(key), DEEPSPEED_KEYS)}"
        for key in deepspeed
        if key not in DEEPSPEED_KEYS and key not in DEEPSPEED_OWNED
    ]
    zero = deepspeed.get("zero_optimization")
    if isinstance(zero, dict) and "stage" in zero:
        found.append("deepspeed.zero_optimization.stage is derived, expected no such key here; set parallel.zero_stage")
    return found


_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _sequence_fits,
    _blocks_fit,
    _tensor_fits,
    _stages_fit,
    _warmup_fits,
    _evaluation_has_data,
    _deepspeed_is_known_and_not_derived,
)
