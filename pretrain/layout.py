"""Layout: which rank does what. The one owner of degrees, process groups and the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pretrain.config import RunConfig
from pretrain.errors import LaunchError, UserError

T = TypeVar("T")

ENVIRONMENTS = {
    "OpenMPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}
"""Where launchers other than DeepSpeed's and torch's put rank, world size and local rank."""


@dataclass
class Layout:
    """This process among all. Data-parallel ranks share one model; ``group`` is theirs."""

    world_size: int
    rank: int
    dp_size: int
    dp_rank: int
    device: torch.device
    group: dist.ProcessGroup | None
    """Data-parallel ranks; None where there is only one."""
    control: dist.ProcessGroup | None
    """All ranks on gloo, for decisions and checkpoints; never carries training traffic."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes the run folder."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any rank. Collective."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value.item())

    def mean(self, value: torch.Tensor) -> float:
        """Mean of a scalar over data-parallel ranks. Collective."""
        total = value.detach().float().reshape(1)
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return float(total.item()) / self.dp_size

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def agree(self, action: Callable[[], T]) -> T:
        """Run ``action``; if it raises ``UserError`` on any rank, raise one on all. Collective.

        ``action`` must not contain collectives: a rank that fails would leave the others in them.
        """
        result, error = None, None
        try:
            result = action()
        except UserError as caught:
            error = caught
        errors = self.gather_objects(error)
        failed = [rank for rank, other in enumerate(errors) if other is not None]
        if not failed:
            return result  # type: ignore[return-value]
        first = errors[failed[0]]
        if len(failed) == self.world_size:
            raise first
        raise type(first)(f"rank {failed[0]} of {self.world_size}: {first}")


def adopt_environment(environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Let RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous come from whichever launcher started us.

    Without one, this is a run of a single process.
    """
    if "RANK" in environ:
        return
    for launcher, names in ENVIRONMENTS.items():
        rank, size, local = (environ.get(name) for name in names)
        if rank is None or size is None or (size == "1" and launcher == "Slurm"):
            continue
        environ.update({"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local or "0"})
        if launcher == "Slurm":
            environ.setdefault("MASTER_ADDR", environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        if int(size) > 1 and "MASTER_ADDR" not in environ:
            raise LaunchError(
                f"{launcher} started {size} processes without MASTER_ADDR; export MASTER_ADDR (the first host's "
                "address) and MASTER_PORT to all of them"
            )
        environ.setdefault("MASTER_PORT", "29500")
        return
    environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"})
    environ["MASTER_PORT"] = "0"


def choose_device(wanted: str) -> torch.device:
    """The device of this process for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        LaunchError: cuda is wanted and there is none for this local rank.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    if local >= count:
        raise LaunchError(
            f"local rank {local} needs GPU number {local}, this host has {count}; start at most {count} processes "
            "per host, or set train.device to cpu"
        )
    return torch.device("cuda", local)


def start(config: RunConfig) -> Layout:
    """Join the other processes and work out the layout. Collective.

    Raises:
        LaunchError: no such device, or a world size that the layout does not divide.
    """
    adopt_environment()
    device = choose_device(config.train.device)
    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed guesses otherwise, and may guess a GPU for a CPU run
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _init_process_group(device)
    world, rank = dist.get_world_size(), dist.get_rank()
    everyone = list(range(world))
    dp_group = dist.new_group(everyone) if world > 1 else None
    control = dist.new_group(everyone, backend="gloo", timeout=timedelta(minutes=60))
    return Layout(world, rank, world, rank, device, dp_group, control)


def _init_process_group(device: torch.device) -> None:
    import deepspeed

    from smet.zero import quiet_cpu_collectives

    quiet_cpu_collectives()
    if os.environ["WORLD_SIZE"] == "1" and not dist.is_initialized():
        store = dist.HashStore()  # no port, so any number of single-process runs share a host
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl", store=store, rank=0, world_size=1)
    deepspeed.init_distributed("gloo" if device.type == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False)
