"""What accelerate does for GPUs alone, on CPUs: ranks under DeepSpeed, and FSDP."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch


def tell_of_ranks_without_gpus() -> None:
    """Let accelerate know of DeepSpeed's ranks on CPUs too. For the rest of this process.

    Without a GPU it takes each rank for the only one: all train on the same samples, and write the same files at once.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    kind: Any = PartialState
    prepare = kind._prepare_backend

    def prepare_gloo(state: Any, *arguments: Any, **options: Any) -> tuple[str | None, Any]:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not torch.cuda.is_available():
            return "gloo", DistributedType.MULTI_CPU
        found: tuple[str | None, Any] = prepare(state, *arguments, **options)
        return found

    kind._prepare_backend = prepare_gloo


def take_cpus_for_accelerators() -> None:
    """Let accelerate turn FSDP on, which it does for accelerators alone. For the rest of this process."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    kind: Any = AcceleratorState
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_fsdp(state: Any, *arguments: Any, **options: Any) -> None:
        begin(state, *arguments, **options)
        if (plugin := options.get("fsdp_plugin")) is not None:
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            state.fsdp_plugin = plugin
            if state.mixed_precision != "no":
                plugin.set_mixed_precision(state.mixed_precision)

    kind.__init__ = begin_fsdp
