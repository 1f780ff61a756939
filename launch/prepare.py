"""From the command line to a job: which launcher, on which hosts, with which environment."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import RunConfig, load_config
from pretrain.environment import PORT
from pretrain.errors import LaunchError
from pretrain.ports import listen, why_not
from pretrain.writers import require_installed

from . import slurm
from .attempt import Watch
from .environment import for_ranks
from .hostfile import read_hostfile
from .hosts import Host, limited, require_fit, slurm_hosts
from .job import Job
from .names import require_host, require_interface, require_one_line, require_plain_path
from .remote import Remote
from .supervisor import Policy


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job, and how its hosts are reached."""

    config: RunConfig
    job: Job
    remote: Remote
    submits: bool
    """Whether it is to be handed to Slurm, instead of being started here."""


def prepare(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Prepared:
    """Work out what ``options`` ask for, and check that the run fits.

    Raises:
        UserError: options that contradict each other, a bad run file or hostfile, a world that does not fit.
    """
    _require_one_place(options)
    if options.interface:
        require_interface(options.interface)
    if options.master_addr:
        require_host(options.master_addr, "--master-addr")
    submits = options.slurm and "SLURM_JOB_ID" not in environ
    config = load_config(options.config, options.overrides)
    require_installed(config.logging.writers)
    hosts = _hosts(options, config, environ, submits)
    require_fit(config, hosts)
    launcher = options.launcher or _launcher(options, hosts)
    if launcher == "pdsh":
        require_plain_path(os.getcwd(), "the working folder")
        require_plain_path(sys.executable, "this Python")
    variables = for_ranks(
        environ, options.env, (Path.home(), Path.cwd()), options.interface, max(host.slots for host in hosts)
    )
    job = Job(
        launcher=launcher,
        config=options.config,
        overrides=tuple(options.overrides),
        hosts=hosts,
        variables=variables,
        python=sys.executable,
        folder=os.getcwd(),
        port=options.master_port or PORT,
        port_is_given=options.master_port is not None,
        address=options.master_addr or ("127.0.0.1" if _is_here(hosts) else None),
        interface=options.interface,
        ssh_arguments=options.ssh_args,
        launcher_arguments=options.launcher_args,
        devices=_visible(environ, hosts[0].slots) if launcher == "local" else (),
    )
    kind = "srun" if options.slurm else "local" if _is_here(hosts) else "ssh"
    remote = Remote(kind=kind, python=sys.executable, ssh=("ssh", *shlex.split(options.ssh_args)))
    return Prepared(config=config, job=job, remote=remote, submits=submits)


def _launcher(options: argparse.Namespace, hosts: tuple[Host, ...]) -> str:
    """What fits the place that was chosen."""
    return "srun" if options.slurm else "openmpi" if options.mpi else "local" if _is_here(hosts) else "pdsh"


def _require_one_place(options: argparse.Namespace) -> None:
    given = [
        name
        for name, is_given in (
            ("--local", options.local),
            ("--slurm", options.slurm),
            ("--mpi" if options.mpi else "--hostfile", options.mpi or options.hostfile),
        )
        if is_given
    ]
    if len(given) > 1:
        raise LaunchError(f"{' and '.join(given)} are both given, expected one of --local, --hostfile, --mpi, --slurm")
    if options.launcher and (options.mpi or options.slurm):
        raise LaunchError(f"--launcher is given, and {given[0]} chooses one itself; leave one of them out")
    if options.nodes and not (options.hostfile or options.slurm):
        raise LaunchError("--nodes needs to know which: give --hostfile or --slurm")


def _hosts(
    options: argparse.Namespace, config: RunConfig, environ: Mapping[str, str], submits: bool
) -> tuple[Host, ...]:
    if options.hostfile:
        return limited(
            read_hostfile(Path(options.hostfile), options.gpus_per_node), options.nodes, options.gpus_per_node
        )
    if submits:
        if options.gpus_per_node is None:
            raise LaunchError("--slurm needs to know how many ranks a node takes; give --nodes N --gpus-per-node N")
        return tuple(Host(f"node-{index}", options.gpus_per_node) for index in range(options.nodes or 1))
    if options.slurm:
        found = slurm_hosts(environ, options.gpus_per_node, slurm.expand)
        return limited(found, options.nodes, options.gpus_per_node)
    slots = options.gpus_per_node or len(_visible(environ, None)) or _gpus(config)
    return (Host("localhost", slots or config.parallel.tensor * config.parallel.pipeline),)


def _is_here(hosts: tuple[Host, ...]) -> bool:
    return [host.name for host in hosts] == ["localhost"]


def _visible(environ: Mapping[str, str], slots: int | None) -> tuple[int, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; none where it does not say, or names them otherwise."""
    text = environ.get("CUDA_VISIBLE_DEVICES", "")
    if not text or not all(part.strip().isdigit() for part in text.split(",")):
        return ()
    return tuple(int(part) for part in text.split(","))[:slots]


def _gpus(config: RunConfig) -> int:
    """GPUs of this machine, by its driver: torch would take seconds to tell."""
    if config.train.device == "cpu":
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, encoding="utf-8", errors="replace", timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def batch_of(options: argparse.Namespace, prepared: Prepared) -> slurm.Batch:
    """The batch job that runs this program on its first node, which starts the ranks with srun."""
    job, config = prepared.job, prepared.config
    more = [word for name in options.env for word in ("--env", name.partition("=")[0])]
    for name in ("interface", "master_addr", "ssh_args", "launcher_args"):
        if value := getattr(options, name):
            more.append(f"--{name.replace('_', '-')}={value}")
    for name in ("master_port", "max_restarts", "back_off", "lost_after", "host_interval", "patience"):
        if (value := getattr(options, name)) != DEFAULTS[name]:
            more += [f"--{name.replace('_', '-')}", f"{value:g}"]
    per_node = job.hosts[0].slots
    return slurm.Batch(
        name=slurm.job_name(config.train.output_dir),
        nodes=len(job.hosts),
        per_node=per_node,
        gpus=config.train.device != "cpu",
        time=_directive(options.time, "--time"),
        margin=options.margin,
        partition=_directive(options.partition, "--partition"),
        account=_directive(options.account, "--account"),
        directives=tuple(require_one_line(option, "--sbatch") for option in slurm.flatten(options.sbatch)),
        folder=require_one_line(job.folder, "the working folder"),
        variables=job.variables,
        command=(
            job.python, "-u", "-m", str(__package__), job.config, *job.overrides, "--slurm", "--gpus-per-node",
            str(per_node), *more, *(["--preflight"] if options.preflight else []),
        ),
    )  # fmt: skip


def _directive(value: str | None, option: str) -> str | None:
    """The value of an option that becomes a line of the batch script: one word of it."""
    if value is not None and (not value or value.startswith("-") or any(c.isspace() for c in value)):
        raise LaunchError(f"{option} is {value!r:.80}, expected one word, as sbatch takes it")
    return value if value is None else require_one_line(value, option)


DEFAULTS = {
    "master_port": None, "max_restarts": 20, "back_off": 5.0, "lost_after": 180.0, "host_interval": 30.0,
    "patience": 600.0,
}  # fmt: skip
"""Of the options that a batch script repeats where they differ."""


def require_port(job: Job) -> None:
    """See that the port that was asked for is free, if the run is to be here; another host's is tried by its ranks.

    Raises:
        LaunchError: it is taken; says by whom.
    """
    if job.launcher != "local" or not job.port_is_given:
        return
    try:
        listen(job.port).close()
    except OSError as error:
        raise LaunchError(why_not(error, job.port, "--master-port ")) from None


def policy_of(options: argparse.Namespace) -> Policy:
    """When to start again."""
    return Policy(max_restarts=options.max_restarts, back_off=options.back_off)


def watch_of(options: argparse.Namespace, config: RunConfig) -> Watch:
    """How long to wait for signs of life; a run that gives them rarely is given more time."""
    return Watch(
        lost_after=max(options.lost_after, 4 * config.operation.heartbeat),
        host_interval=options.host_interval,
        patience=options.patience,
    )
