"""What a Trainer under FSDP2 needs beside the callback's events: what it cannot do, and how it loads a whole state."""

from __future__ import annotations

from typing import Any


class OnDevice:
    """In the place of ``FullStateDictConfig`` while transformers loads: whatever accelerate sets, nothing goes by CPUs.

    On that way ``set_model_state_dict`` of torch 2.13 looks for a parameter or buffer behind each entry that rank 0
    sends, and ends in a KeyError where a sparse layer says how it lies.
    """

    def __init__(self) -> None:
        self.rank0_only = False

    @property
    def offload_to_cpu(self) -> bool:
        """No."""
        return False

    @offload_to_cpu.setter
    def offload_to_cpu(self, _: bool) -> None: ...


def plugin_of(trainer: Any) -> Any:
    """Accelerate's options of FSDP."""
    return trainer.accelerator.state.fsdp_plugin


def is_whole(plugin: Any) -> bool:
    """Whether checkpoints are whole states, which rank 0 writes and reads."""
    return getattr(plugin.state_dict_type, "name", "") == "FULL_STATE_DICT"


def problems_of(trainer: Any) -> list[str]:
    """Why the trainer cannot train a sparse model under its options of FSDP."""
    plugin, args = plugin_of(trainer), trainer.args
    if plugin.fsdp_version != 2:
        return [
            "the trainer runs FSDP1, expected FSDP2; set fsdp_config={'version': 2}, or fsdp_version: 2 in the file by"
            " which accelerate launches"
        ]
    found = []
    if plugin.cpu_ram_efficient_loading:
        found.append("fsdp's cpu_ram_efficient_loading sends parameters and no masks to other ranks; set it to False")
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        found.append("fsdp's cpu_offload is not supported; leave it out, each rank holds its part of the state alone")
    if args.torch_compile:
        found.append("torch_compile under fsdp is not supported; leave one of them out")
    if args.load_best_model_at_end and is_whole(plugin):
        found.append(
            "load_best_model_at_end under fsdp needs states in parts; set"
            " fsdp_config={'state_dict_type': 'SHARDED_STATE_DICT'}"
        )
    return found
