"""Joining the other processes, whichever launcher started them."""

from __future__ import annotations

import errno
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from pretrain.config import RunConfig
from pretrain.environment import adopt_environment, check_world
from pretrain.errors import LaunchError
from pretrain.layout import Coordinates, Layout, make_groups, set_device
from pretrain.ports import why_not
from pretrain.precision import widen_products


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
        remedy = f"start at most {count} per host" if count else "see nvidia-smi and CUDA_VISIBLE_DEVICES there"
        raise LaunchError(
            f"train.device is {wanted}, and {processes} processes on this host need a GPU each, it has {count}; "
            f"{remedy}, or set train.device to cpu"
        )
    return torch.device("cuda", local)


def start(config: RunConfig) -> Layout:
    """Join the other processes and work out the layout. Collective.

    Raises:
        LaunchError: no such device, or a world size that the layout does not divide.
        ConfigError: a global batch that does not divide among the ranks.
    """
    check_world(adopt_environment().world, config)
    device = choose_device(config.train.device)
    set_device(device)
    widen_products(device)
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
    try:
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = int(os.environ["MASTER_PORT"])  # taken within the seconds since the ranks met there
        raise LaunchError(why_not(OSError(errno.EADDRINUSE, ""), port, "MASTER_PORT=")) from None
