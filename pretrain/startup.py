"""Joining the other processes, whichever launcher started them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist

from pretrain.config import RunConfig
from pretrain.config.layouts import nearest_layouts
from pretrain.errors import LaunchError
from pretrain.layout import Coordinates, Layout, make_groups, set_device

ENVIRONMENTS = {
    "OpenMPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
}
"""Where launchers other than DeepSpeed's and torch's put rank, world size, local rank and processes per host."""


def adopt_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous come from whichever launcher started us.

    Without one, this is a run of a single process.

    Raises:
        LaunchError: a launcher started several processes that cannot find each other.
    """
    if "RANK" in environ:
        return
    for launcher, names in ENVIRONMENTS.items():
        rank, size, local, per_host = (environ.get(name) for name in names)
        if rank is None or size is None or size == "1":
            continue
        environ.update({"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local or "0"})
        if per_host is not None:
            environ["LOCAL_WORLD_SIZE"] = per_host
        if launcher == "Slurm" and "SLURM_LAUNCH_NODE_IPADDR" in environ:
            environ.setdefault("MASTER_ADDR", environ["SLURM_LAUNCH_NODE_IPADDR"])
        if "MASTER_ADDR" not in environ:
            raise LaunchError(
                f"{launcher} started {size} processes without MASTER_ADDR; export MASTER_ADDR (the first host's "
                "address) and MASTER_PORT to all of them"
            )
        environ.setdefault("MASTER_PORT", "29500")
        return
    environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    environ.setdefault("MASTER_ADDR", "127.0.0.1")
    environ.setdefault("MASTER_PORT", "0")


def choose_device(wanted: str) -> torch.device:
    """The device of this process for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        LaunchError: a process of this host has no GPU of its own; raised in all of them, where their number is known.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    # torch's launcher sets the first, DeepSpeed's the second.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or local + 1)
    if processes > count:
        raise LaunchError(
            f"train.device is {wanted}, and {processes} processes on this host need a GPU each, it has {count}; start "
            f"at most {count} per host, or set train.device to cpu"
        )
    return torch.device("cuda", local)


def check_world(world: int, config: RunConfig) -> None:
    """Check that the degrees and the batch divide among the processes, before these talk to each other.

    Raises:
        LaunchError: the degrees do not divide them; names the nearest layouts that would work.
        ConfigError: the global batch does not divide among the data-parallel ranks.
    """
    parallel = config.parallel
    shards = parallel.tensor * parallel.pipeline
    if world % shards == 0:
        config.accumulation(world // shards)
        return
    fitting = nearest_layouts(config.model, config.data, config.sparsity, parallel, world)
    bare = ", which is what a start without a launcher gives" if world == 1 else ""
    raise LaunchError(
        f"{world} process{'es' if world > 1 else ''} started{bare}, expected a multiple of parallel.tensor "
        f"{parallel.tensor} x parallel.pipeline {parallel.pipeline} = {shards}; start a multiple of {shards}, or "
        f"set what works with {world}: {'; '.join(fitting)}"
    )


def start(config: RunConfig) -> Layout:
    """Join the other processes and work out the layout. Collective.

    Raises:
        LaunchError: no such device, or a world size that the layout does not divide.
        ConfigError: a global batch that does not divide among the ranks.
    """
    adopt_environment()
    check_world(int(os.environ["WORLD_SIZE"]), config)
    device = choose_device(config.train.device)
    set_device(device)
    _init_process_group(device)
    world, rank = dist.get_world_size(), dist.get_rank()
    tensor, stages = config.parallel.tensor, config.parallel.pipeline
    data = world // (tensor * stages)
    groups = make_groups(world, rank, tensor, stages)
    control, background = (
        dist.new_group(list(range(world)), backend="gloo", timeout=timedelta(minutes=60)) for _ in range(2)
    )
    place = Coordinates.of(rank, data, tensor)
    return Layout(
        world, rank, data, place.data, device, control=control, background=background, tensor_size=tensor,
        tensor_rank=place.tensor, stages=stages, stage=place.stage, **groups,
    )  # fmt: skip


def _init_process_group(device: torch.device) -> None:
    import deepspeed

    from smet.zero import quiet_cpu_collectives

    quiet_cpu_collectives()
    backend = "gloo" if device.type == "cpu" else "nccl"
    if os.environ["WORLD_SIZE"] == "1" and not dist.is_initialized():
        store = dist.HashStore()  # no port, so any number of single-process runs share a host
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
