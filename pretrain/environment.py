"""Where this process stands among all: what the variables of launchers say, checked before torch is imported."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass

from pretrain.command import told
from pretrain.config import RunConfig
from pretrain.config.layouts import nearest_layouts
from pretrain.errors import LaunchError

PORT = 29500
"""Where processes meet if nobody says otherwise; DeepSpeed's and torch's launchers use the same."""

RANKS = {
    "OpenMPI": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}  # fmt: skip
"""Where launchers other than DeepSpeed's and torch's put rank, world size, local rank and processes per host."""

ALONE = "for a run of one process, `unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT`"


def _launchers() -> str:
    return f"start several with `{told('launch')}`, `deepspeed` or `torchrun`"


@dataclass(frozen=True)
class Place:
    """This process among all, and where they meet."""

    rank: int
    world: int
    local: int
    """This process among those of its host."""
    source: str
    """Who says so: a launcher's name, ``RANK and WORLD_SIZE`` where they were set by hand, or empty: no launcher."""
    address: str
    port: int
    store_is_hosted: bool = False
    """Whether the launcher itself listens where processes meet, as torchrun does, and not rank 0."""
    note: str = ""
    """What the user may not expect of a place that is no error."""


def adopt_environment(environ: MutableMapping[str, str] = os.environ) -> Place:
    """Let RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous come from whichever launcher started us.

    Without one, this is a run of a single process.

    Raises:
        LaunchError: variables that are missing, are no numbers, or contradict each other.
    """
    note = ""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        source = _named(environ)
        if environ["WORLD_SIZE"].strip() == "1":
            note = _left_alone(environ, source)
    elif launcher := _started_by(environ):
        source = launcher
        _translate(launcher, environ)
    elif "RANK" in environ or environ.get("WORLD_SIZE", "1").strip() != "1":
        have, lack = ("RANK", "WORLD_SIZE") if "RANK" in environ else ("WORLD_SIZE", "RANK")
        raise LaunchError(
            f"{have} is set ({environ[have]!r}) and {lack} is not, expected both or none: left over from another "
            f"start? {ALONE}; {_launchers()}"
        )
    else:
        source, note = "", _outside_of_tasks(environ)
        environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
        environ.pop("LOCAL_SIZE", None)  # of another start
    return _checked(environ, source, note)


def _named(environ: MutableMapping[str, str]) -> str:
    """Which launcher sets RANK and WORLD_SIZE itself, by its other marks."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "deepspeed" if "CROSS_SIZE" in environ else "RANK and WORLD_SIZE"


def _started_by(environ: MutableMapping[str, str]) -> str:
    """Which of ``RANKS`` started this process as one of several; empty: none."""
    for launcher, (rank, size, *_) in RANKS.items():
        if launcher == "Slurm" and "SLURM_STEP_NUM_TASKS" in environ:
            size = "SLURM_STEP_NUM_TASKS"  # of the step that this is in; the other may be the whole job's
        if rank not in environ or environ.get(size, "1") == "1":
            continue
        if launcher == "Slurm" and environ[rank] == "0" and not {"SLURM_STEP_ID", "SLURM_STEPID"} & {*environ}:
            raise LaunchError(
                f"this is the shell of a Slurm job of {environ[size]} tasks ({size}), and not one of them, expected "
                f"srun to start all; put `srun` in front, or use `{told('launch', 'CONFIG', '--slurm')}`; for a run of "
                "one process, put `SLURM_NTASKS=1` in front"
            )
        return launcher
    return ""


def _translate(launcher: str, environ: MutableMapping[str, str]) -> None:
    rank, size, local, per_host = RANKS[launcher]
    if launcher == "Slurm" and "SLURM_STEP_NUM_TASKS" in environ:
        size = "SLURM_STEP_NUM_TASKS"
    environ.update(RANK=environ[rank], WORLD_SIZE=environ[size], LOCAL_RANK=environ.get(local, "0"))
    if environ.get(per_host, "").isdigit():
        environ["LOCAL_WORLD_SIZE"] = environ[per_host]
    if launcher == "Slurm" and (address := _slurm_address(environ)):
        environ.setdefault("MASTER_ADDR", address)
    if not environ.get("MASTER_ADDR"):
        raise LaunchError(
            f"{launcher} started {environ[size]} processes without MASTER_ADDR; export MASTER_ADDR (the first host's "
            "address) and MASTER_PORT to all of them"
        )


def _slurm_address(environ: MutableMapping[str, str]) -> str:
    """The host of rank 0: srun's own, which is the next best, may be a login node without a task."""
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)  # node[07-12,15]-ib -> node07-ib
    return "".join(part or "" for part in match.groups()) if match else environ.get("SLURM_LAUNCH_NODE_IPADDR", "")


def _left_alone(environ: MutableMapping[str, str], source: str) -> str:
    """A run of one process by RANK and WORLD_SIZE, while another launcher says that there are more."""
    if source != "RANK and WORLD_SIZE" or environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        return ""
    for launcher, (rank, size, *_) in RANKS.items():
        if rank in environ and environ.get(size, "1") != "1":
            return (
                f"{launcher} speaks of {environ[size]} processes, but WORLD_SIZE is 1: each trains alone; "
                "`unset RANK WORLD_SIZE` to train together"
            )
    return ""


def _outside_of_tasks(environ: MutableMapping[str, str]) -> str:
    """A run of one process in the shell of a Slurm allocation for more."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" in environ or not tasks.isdigit() or int(tasks) < 2:
        return ""
    return (
        f"this shell holds a Slurm allocation for {tasks} tasks, and one process trains, here; put `srun` in front to "
        "use them all"
    )


def _checked(environ: MutableMapping[str, str], source: str, note: str) -> Place:
    """The place, if all that was set makes sense; says everything that does not at once."""
    problems: list[str] = []

    def number(name: str, default: str | None = None) -> int:
        text = environ.get(name, default)
        if text is not None and re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
            return int(text)
        problems.append(f"{name} is {'not set' if text is None else repr(text)}, expected a whole number")
        return 0

    rank, world, local = number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK", "0")
    port, address = 0, environ.get("MASTER_ADDR", "").strip()
    if not problems and world < 1:
        problems.append(f"WORLD_SIZE is {world}, expected 1 or more")
    elif not problems and rank >= world:
        problems.append(f"RANK is {rank}, expected 0 to WORLD_SIZE - 1 = {world - 1}")
    if world > 1:
        port = number("MASTER_PORT", str(PORT))
        if not any(problem.startswith("MASTER_PORT") for problem in problems) and not 0 < port < 65536:
            problems.append(f"MASTER_PORT is {port}, expected 1 to 65535, free on the first host")
        if not address:
            problems.append("MASTER_ADDR is not set, expected the address of the host of rank 0")
    if problems:
        raise LaunchError(f"{'; '.join(problems)} (set by: {source or 'hand'}); {ALONE}; {_launchers()}")
    if world == 1:
        address = environ.setdefault("MASTER_ADDR", "127.0.0.1")
    environ.setdefault("MASTER_PORT", str(port))
    environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local))
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environ:  # DeepSpeed asserts that it is the same, whoever started us
        environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(local)
    hosted = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, world, local, source, address, port, hosted, note)


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
