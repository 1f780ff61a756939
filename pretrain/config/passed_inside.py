"""What stands inside the keys that are passed on to DeepSpeed.

A misspelt one would be passed over there without a word, and a value that DeepSpeed does not take be a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pretrain.errors import nearest

if TYPE_CHECKING:
    from pretrain.config.schema import ParallelConfig

INSIDE = {
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
    "comms_logger": ("enabled", "prof_all", "prof_ops", "verbose", "debug"),
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "flops_profiler": (
        "enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file",
    ),
    "pipeline": (
        "stages", "partition", "seed_layers", "activation_checkpoint_interval", "pipe_partitioned", "grad_partitioned",
    ),
    "timers": ("throughput",),
}  # fmt: skip
"""The keys that deepspeed 0.19.8 reads inside a key of its own; those of ``zero_optimization`` it checks itself."""

NUMBERS = ("fp32", "bf16", "fp16", "float32", "bfloat16", "float16")
"""To which DeepSpeed casts what a model keeps beside its weights; it has further words for them."""
_LEVELS = ("debug", "info", "warning", "error", "critical")


def _is_word(words: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.lower() in words


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


_FLAGS = ("disable_python_gc", "dump_state", "memory_breakdown", "prescale_gradients", "wall_clock_breakdown")

VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{key: (_is_flag, "true or false") for key in _FLAGS},
    "gradient_predivide_factor": (_is_factor, "a positive number"),
    "log_level": (_is_word(_LEVELS), f"one of {', '.join(_LEVELS)}"),
    "steps_per_print": (_is_count, "a whole number of 1 or more"),
}  # fmt: skip
"""What DeepSpeed takes for a key, and that in words; null leaves any of them at its default."""


def _inner_keys_are_known(deepspeed: dict[str, Any]) -> list[str]:
    found = []
    for section, known in INSIDE.items():
        inside = deepspeed.get(section, {})
        if not isinstance(inside, dict):
            if section != "data_types":  # which has a check of its own
                found.append(f"deepspeed.{section} is {inside!r}, expected a mapping of keys such as {known[0]}")
            continue
        found += [
            f"deepspeed.{section}.{key} is not a known key of DeepSpeed{nearest(str(key), known)}"
            for key in inside
            if key not in known
        ]
    return found


def _values_are_taken(deepspeed: dict[str, Any]) -> list[str]:
    return [
        f"deepspeed.{key} is {deepspeed[key]!r}, expected {text}"
        for key, (fits, text) in VALUES.items()
        if deepspeed.get(key) is not None and not fits(deepspeed[key])
    ]


def _buffers_are_cast_to_numbers(deepspeed: dict[str, Any]) -> list[str]:
    types = deepspeed.get("data_types")
    told = types.get("buffer_dtype") if isinstance(types, dict) else None
    if told is None or told in NUMBERS:
        return []
    return [f"deepspeed.data_types.buffer_dtype is {told!r}, expected one of {', '.join(NUMBERS)}, or no such key"]


def _gradients_are_scaled_where_they_can_be(deepspeed: dict[str, Any], parallel: ParallelConfig) -> list[str]:
    zero = deepspeed.get("zero_optimization")
    scatters = zero.get("reduce_scatter", True) if isinstance(zero, dict) else True
    if parallel.zero_stage == 1 or not scatters:
        return []
    return [
        f"deepspeed.{key} is {deepspeed[key]!r} with parallel.zero_stage {parallel.zero_stage}, expected"
        f" {str(plain).lower()}: DeepSpeed does that only where zero_optimization.reduce_scatter is false"
        for key, plain in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0))
        if deepspeed.get(key) is not None and VALUES[key][0](deepspeed[key]) and deepspeed[key] != plain
    ]


INSIDE_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _inner_keys_are_known,
    _values_are_taken,
    _buffers_are_cast_to_numbers,
    _gradients_are_scaled_where_they_can_be,
)


def without_unknown(saved: dict[str, Any]) -> dict[str, Any]:
    """The section of an earlier release, which passed unknown inner keys on, without them."""
    return {
        key: {name: one for name, one in value.items() if name in INSIDE[key]}
        if key in INSIDE and isinstance(value, dict)
        else value
        for key, value in saved.items()
    }
