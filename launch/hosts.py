"""Hosts and how many ranks each takes: Slurm's allocation, and the largest world that a run can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pretrain.config import RunConfig
from pretrain.config.layouts import nearest_layouts
from pretrain.errors import LaunchError

from .names import require_host


@dataclass(frozen=True)
class Host:
    """A machine, by the name that ssh or Slurm knows it by."""

    name: str
    slots: int
    """Ranks it takes: its GPUs, or processes on a machine without."""

    def __post_init__(self) -> None:
        require_host(self.name, "the list of hosts")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The hosts of one attempt, and the micro-batch that lets the global batch divide among their ranks."""

    hosts: tuple[Host, ...]
    micro_batch_size: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return sum(host.slots for host in self.hosts)


def limited(hosts: Sequence[Host], nodes: int | None, per_node: int | None) -> tuple[Host, ...]:
    """The first ``nodes`` hosts with ``per_node`` ranks each; None = all.

    Raises:
        LaunchError: there are not as many.
    """
    if nodes is not None and nodes > len(hosts):
        raise LaunchError(f"--nodes is {nodes}, expected at most the {len(hosts)} hosts there are")
    chosen = tuple(hosts[:nodes])
    if per_node is None:
        return chosen
    for host in chosen:
        if per_node > host.slots:
            raise LaunchError(f"--gpus-per-node is {per_node}, expected at most {host.name}'s {host.slots} slots")
    return tuple(replace(host, slots=per_node) for host in chosen)


def slurm_hosts(environ: Mapping[str, str], per_node: int | None, expand: Callable[[str], list[str]]) -> list[Host]:
    """The hosts of the Slurm job that this process runs in.

    Args:
        expand: turns Slurm's short form, such as ``node[1-4]``, into names.

    Raises:
        LaunchError: this is no Slurm job, or it does not say how many ranks a node takes.
    """
    nodes = environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise LaunchError("this is no Slurm job, expected to run inside one; submit it with --slurm, or use salloc")
    slots = per_node
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_GPUS_ON_NODE"):
        if slots is None and environ.get(name, "").isdigit():
            slots = int(environ[name])
    if slots is None:
        raise LaunchError("the Slurm job does not say how many ranks a node takes; give --gpus-per-node N")
    return [Host(name, slots) for name in expand(nodes)]


def choose(config: RunConfig, hosts: Sequence[Host]) -> Choice | None:
    """The most ranks of ``hosts`` that this run can use at its own tensor and pipeline degrees, or None.

    All slots of all hosts if the run can use them; else as many on each host. The global batch stays: fewer ranks
    accumulate more micro-batches, smaller ones where it does not divide otherwise.
    """
    candidates = [tuple(hosts)] if hosts else []
    for count in range(len(hosts), 0, -1):
        largest = sorted(hosts, key=lambda host: -host.slots)[:count]
        chosen = tuple(host for host in hosts if host in largest)
        for slots in range(min(host.slots for host in chosen), 0, -1):
            candidates.append(tuple(replace(host, slots=slots) for host in chosen))
    fitting = [
        Choice(hosts=candidate, micro_batch_size=micro)
        for candidate in candidates
        if (micro := _micro_batch(config, sum(host.slots for host in candidate))) is not None
    ]
    # As many ranks on fewer hosts have less to send between hosts.
    return max(fitting, key=lambda one: (one.world, one.micro_batch_size, -len(one.hosts)), default=None)


def _micro_batch(config: RunConfig, world: int) -> int | None:
    """The largest micro-batch, up to the run's own, that ``world`` ranks can share the global batch with."""
    shards = config.parallel.tensor * config.parallel.pipeline
    batch = config.train.global_batch_size
    if world % shards or batch % (world // shards):
        return None
    per_rank = batch // (world // shards)
    return next(size for size in range(min(config.train.micro_batch_size, per_rank), 0, -1) if per_rank % size == 0)


def require_fit(config: RunConfig, hosts: Sequence[Host]) -> Choice:
    """All of ``hosts``, as given, at the run's own micro-batch.

    Raises:
        LaunchError: the degrees do not divide their ranks; names layouts that would work.
        ConfigError: the global batch does not divide.
    """
    world = sum(host.slots for host in hosts)
    parallel = config.parallel
    shards = parallel.tensor * parallel.pipeline
    if world % shards:
        fitting = nearest_layouts(config.model, config.data, config.sparsity, parallel, world)
        raise LaunchError(
            f"{len(hosts)} host{'s give' if len(hosts) > 1 else ' gives'} {world} ranks, expected a multiple of "
            f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} = {shards}; give --nodes and "
            f"--gpus-per-node that make one, or set what works with {world}: {'; '.join(fitting)}"
        )
    config.accumulation(world // shards)
    return Choice(hosts=tuple(hosts), micro_batch_size=config.train.micro_batch_size)
