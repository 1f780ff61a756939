"""The section ``deepspeed`` of a run file, whose keys are passed on: those that would be passed over, or would change
what a step is, are answered with what to set instead.

Each check is a function of the sections it names as parameters, as in ``pretrain.config.checks``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pretrain.config.passed_inside import INSIDE_CHECKS, without_unknown
from pretrain.errors import nearest

if TYPE_CHECKING:
    from pretrain.config.schema import ParallelConfig, TrainConfig

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

MONITORS = {
    "tensorboard": "set logging.writers: [tensorboard]",
    "wandb": "set logging.writers: [wandb]",
    "csv_monitor": "metrics.jsonl in the run folder has every figure of every step, and logging.writers takes more",
    "comet": "set logging.writers to tensorboard, wandb, trackio, or a writer of your own (package.module:function)",
}
"""DeepSpeed's own monitors, which know neither of topology nor of resuming, and what takes their place."""

DEEPSPEED_KEYS = (
    "aio", "comms_logger", "communication_data_type", "data_types", "disable_python_gc", "dump_state",
    "expert_parallel", "flops_profiler", "gradient_predivide_factor", "log_level", "memory_breakdown",
    "pipeline", "prescale_gradients", "steps_per_print", "timers", "wall_clock_breakdown", "zero_optimization",
)  # fmt: skip
"""The other keys that deepspeed 0.19.8 reads; it passes over any that it does not know without a word."""

INSTEAD = {
    "activation_checkpointing": "decides nothing here; set train.activation_checkpointing",
    "autotuning": "decides nothing here; smet plan --search ranks the layouts that fit",
    "checkpoint": "decides nothing here; set the section checkpoint",
    "compile": "decides nothing here: the engine is not compiled",
    "data_efficiency": "decides nothing here; the section data says how samples are drawn",
    "dataloader_drop_last": "decides nothing here; the section data says how samples are drawn",
    "disable_allgather": "decides nothing: DeepSpeed reads it, and does nothing with it",
    "elasticity": "is no key of DeepSpeed any more; a run goes on at another number of ranks by itself",
    "gradient_allreduce_op": "would make another run of each number of ranks; gradients are averaged over them",
    "managed_gradient_accumulation": "would make a step of each micro-batch; steps are of train.global_batch_size",
    "seq_parallel_communication_data_type": "decides nothing here: DeepSpeed cuts no sequences; set parallel.sequence",
    "tensor_parallel": "would cut layers that are cut already; set parallel.tensor",
    "torch_autocast": "would compute in other numbers than the weights have; set train.precision",
    "weight_quantization": "decides nothing here: the model is not built by DeepSpeed",
    "zero_allow_untested_optimizer": "is derived: the optimizer is this program's own",
    "zero_force_ds_cpu_optimizer": "is derived: the optimizer is this program's own",
}
"""Further keys that DeepSpeed knows, and that have no good value here: what they would do, and where to set it."""

ZERO_INSTEAD = {
    "stage": "is derived; set parallel.zero_stage",
    "compute_grad_norm": "would leave out the gradient norm, by which spikes are told",
    "cpu_offload": "is an older word; set offload_optimizer.device to cpu",
    "cpu_offload_param": "is an older word; set offload_param.device to cpu",
    "cpu_offload_use_pin_memory": "is an older word; set offload_optimizer.pin_memory",
    "zenflow": "would put another optimizer in the place of the program's own",
}
"""The same of ``zero_optimization``."""


SUMS = {
    "fp32": ("fp32", "float32", "float", "torch.float32"),
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
}
"""DeepSpeed's words for the numbers in which gradients are summed over micro-batches, by ours."""
WIDTHS = {"fp32": 4, "bf16": 2}
"""Bytes of a number, by the words of run files: of a weight, and of a gradient that is summed or sent."""


def summed_in(deepspeed: dict[str, Any], precision: str) -> str:
    """In which numbers a run that trains in ``precision`` sums its gradients over micro-batches."""
    told = (deepspeed.get("data_types") or {}).get("grad_accum_dtype")
    return next((name for name, words in SUMS.items() if told in words), precision)


def sent_in(deepspeed: dict[str, Any], precision: str) -> str:
    """In which numbers such a run averages gradients over ranks."""
    return str(deepspeed.get("communication_data_type") or precision)


def _unwanted(name: str, why: str) -> str:
    reason, semicolon, instead = why.partition("; ")
    return f"{name} {reason}, expected no such key here{semicolon}{instead}"


def _keys_are_known_and_mean_something(deepspeed: dict[str, Any]) -> list[str]:
    found = [
        f"deepspeed.{key} is derived, expected no such key here; set {instead}"
        for key, instead in DEEPSPEED_OWNED.items()
        if key in deepspeed
    ]
    found += [
        f"deepspeed.{key} is DeepSpeed's own monitor, expected no such key here; {instead}"
        for key, instead in MONITORS.items()
        if key in deepspeed
    ]
    found += [_unwanted(f"deepspeed.{key}", why) for key, why in INSTEAD.items() if key in deepspeed]
    known = (DEEPSPEED_KEYS, DEEPSPEED_OWNED, MONITORS, INSTEAD)
    return found + [
        f"deepspeed.{key} is not a known key of DeepSpeed{nearest(str(key), DEEPSPEED_KEYS)}"
        for key in deepspeed
        if not any(key in keys for keys in known)
    ]


def _zero_keys_mean_something(deepspeed: dict[str, Any], parallel: ParallelConfig) -> list[str]:
    name, zero = "deepspeed.zero_optimization", deepspeed.get("zero_optimization")
    if zero is None:
        return []
    if not isinstance(zero, dict):
        return [f"{name} is {zero!r}, expected a mapping of keys; the stage is parallel.zero_stage"]
    found = [_unwanted(f"{name}.{key}", why) for key, why in ZERO_INSTEAD.items() if key in zero]
    for key in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(key, {}), dict):
            found.append(f"{name}.{key} is {zero[key]!r}, expected a mapping such as {{device: cpu}}")
            return found
    optimizer, weights = zero.get("offload_optimizer", {}), zero.get("offload_param", {})
    if optimizer.get("device") == "nvme":
        found.append(
            f"{name}.offload_optimizer.device is 'nvme', expected cpu or none: topology updates change master weights"
            " and moments, which have to be in memory"
        )
    for key, plain in (("ratio", 1), ("super_offload", False)):
        if optimizer.get(key, plain) != plain:
            found.append(
                f"{name}.offload_optimizer.{key} is {optimizer[key]!r}, expected {str(plain).lower()}: DeepSpeed has"
                " more only for an optimizer of its own"
            )
    if weights.get("device", "none") != "none" and parallel.zero_stage in (1, 2):
        found.append(
            f"{name}.offload_param.device is {weights['device']!r} with parallel.zero_stage {parallel.zero_stage},"
            " expected zero_stage 3: below it DeepSpeed passes over it"
        )
    return found


def _gradients_are_summed_soundly(deepspeed: dict[str, Any], parallel: ParallelConfig, train: TrainConfig) -> list[str]:
    types = deepspeed.get("data_types")
    if types is None:
        return []
    if not isinstance(types, dict):
        return [f"deepspeed.data_types is {types!r}, expected a mapping of keys such as {{grad_accum_dtype: fp32}}"]
    found = []
    if "param_dtype" in types:
        found.append("deepspeed.data_types.param_dtype is derived, expected no such key here; set train.precision")
    told, name = types.get("grad_accum_dtype"), "deepspeed.data_types.grad_accum_dtype"
    if told is None or told in SUMS.get(train.precision, ()):
        return found
    if told not in SUMS["fp32"]:
        found.append(f"{name} is {told!r}, expected fp32, or no such key: gradients are then in train.precision")
    elif parallel.zero_stage == 1:
        found.append(
            f"{name} is {told!r} with parallel.zero_stage 1, expected zero_stage 2 or 3: below them DeepSpeed puts"
            " another optimizer in the place of the program's own"
        )
    return found


def _gradients_are_sent_soundly(deepspeed: dict[str, Any]) -> list[str]:
    told = deepspeed.get("communication_data_type")
    if told is None or told in tuple(WIDTHS):  # which takes a list as well
        return []
    why = ", in which gradients overflow" if told == "fp16" else ""
    return [f"deepspeed.communication_data_type is {told!r}{why}, expected {' or '.join(WIDTHS)}, or no such key"]


PASSED_ON_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _keys_are_known_and_mean_something,
    _zero_keys_mean_something,
    _gradients_are_summed_soundly,
    _gradients_are_sent_soundly,
    *INSIDE_CHECKS,
)


def still_known(saved: dict[str, Any]) -> dict[str, Any]:
    """The section of an earlier release, which let keys be set that are refused now, without them."""
    kept = {key: value for key, value in saved.items() if key not in MONITORS and key not in INSTEAD}
    if kept.get("communication_data_type") not in tuple(WIDTHS):
        kept.pop("communication_data_type", None)
    kept = without_unknown(kept)
    if isinstance(types := kept.get("data_types"), dict):
        sound = {"param_dtype": False, "grad_accum_dtype": types.get("grad_accum_dtype") in SUMS["fp32"]}
        kept["data_types"] = {key: value for key, value in types.items() if sound.get(key, True)}
    if isinstance(zero := kept.get("zero_optimization"), dict):
        kept["zero_optimization"] = {key: value for key, value in zero.items() if key not in ZERO_INSTEAD}
    return kept
