"""What starts the ranks of one attempt: the exact command of each launcher, and the files it reads.

DeepSpeed's own launchers do the work on one machine, over ssh and under MPI. Under Slurm ``srun`` does: DeepSpeed's
Slurm launcher sets no ranks, and would run as many separate runs as there are processes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

from pretrain.errors import LaunchError

from .environment import render_file
from .hostfile import render_hostfile
from .job import ADDRESS, ENVIRONMENT, HOSTFILE, Job, Start

SLURM = "srun"
"""Starts the steps of a Slurm job, and nothing outside of one."""
_NOT_EXPORTED = ("PATH", "LD_LIBRARY_PATH", "PYTHON", "UCX")
"""The first two are mpirun's business, the others DeepSpeed names itself."""


def _local(job: Job) -> Start:
    # /dev/null is "no hostfile": by itself DeepSpeed would look for /job/hostfile, and go there.
    # --num_gpus would take the first ones, whatever CUDA_VISIBLE_DEVICES says.
    which = ("--include", f"localhost:{','.join(map(str, job.devices))}") if job.devices else ()
    command = (
        *_deepspeed(job), "--hostfile", "/dev/null", *(which or ("--num_gpus", str(job.world))),
        "--master_port", str(job.port), "--module", "pretrain", job.config, *job.overrides,
    )  # fmt: skip
    return Start(command=command, variables=job.variables)


def _pdsh(job: Job) -> Start:
    extra = ("--launcher_args", job.launcher_arguments) if job.launcher_arguments else ()
    command = (
        *_deepspeed(job), "--hostfile", HOSTFILE, "--launcher", "pdsh", "--force_multi", "--no_ssh_check", *extra,
        "--master_addr", job.address or ADDRESS, "--master_port", str(job.port), "--module", "pretrain",
        *(through_pdsh(argument) for argument in (job.config, *job.overrides)),
    )  # fmt: skip
    files = {HOSTFILE: render_hostfile(job.hosts), ENVIRONMENT: render_file(job.variables)}
    # A host that vanishes must not keep pdsh waiting for ever; the user's own options come last, and win.
    ssh = f"-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4 {job.ssh_arguments}".strip()
    return Start(command=command, variables={"DS_ENV_FILE": ENVIRONMENT, "PDSH_SSH_ARGS_APPEND": ssh}, files=files)


def _openmpi(job: Job) -> Start:
    variables = {
        **job.variables,
        "MASTER_ADDR": job.address or ADDRESS,
        "MASTER_PORT": str(job.port),
    }
    # By name, with the values in mpirun's own environment: DeepSpeed would put quotes into values with special
    # characters.
    exported = [f"-x {name}" for name in variables if not name.startswith(_NOT_EXPORTED)]
    interface = f"--mca btl_tcp_if_include {job.interface}" if job.interface else ""
    extra = " ".join(filter(None, [interface, *exported, job.launcher_arguments]))
    command = (
        *_deepspeed(job), "--hostfile", HOSTFILE, "--launcher", "openmpi", "--force_multi", "--no_ssh_check",
        "--master_addr", variables["MASTER_ADDR"], "--launcher_args", extra, "--module", "pretrain", job.config,
        *job.overrides,
    )  # fmt: skip
    ssh = f"ssh {job.ssh_arguments}"
    # The same setting as OpenMPI 5 and as OpenMPI 4 call it.
    agent = {"PRTE_MCA_plm_ssh_agent": ssh, "OMPI_MCA_plm_rsh_agent": ssh} if job.ssh_arguments else {}
    return Start(
        command=command,
        variables={**variables, **agent, "DS_ENV_FILE": "/dev/null"},
        files={HOSTFILE: render_hostfile(job.hosts)},
    )


def _srun(job: Job) -> Start:
    per_node = {host.slots for host in job.hosts}
    if len(per_node) > 1:
        raise LaunchError("srun starts as many ranks on every node; give --gpus-per-node N")
    variables = {
        **job.variables,
        "MASTER_ADDR": job.address or job.hosts[0].name,
        "MASTER_PORT": str(job.port),
    }
    # The first rank to end must not take the others with it while they end in order; a minute later it may.
    command = (
        "srun", f"--nodes={len(job.hosts)}", f"--ntasks={job.world}", f"--ntasks-per-node={per_node.pop()}",
        f"--nodelist={','.join(host.name for host in job.hosts)}", f"--chdir={job.folder}",
        f"--export={','.join(['PATH', 'HOME', *(name for name in variables if name != 'PATH')])}",
        "--kill-on-bad-exit=0", "--wait=60", "--unbuffered", *shlex.split(job.launcher_arguments),
        job.python, "-u", "-m", "pretrain", job.config, *job.overrides,
    )  # fmt: skip
    return Start(command=command, variables=variables)


def _deepspeed(job: Job) -> tuple[str, ...]:
    """The ``deepspeed`` command by its module: it runs with the Python that all hosts are to use."""
    return (job.python, "-m", "deepspeed.launcher.runner", "--log_level", "warning")


def through_pdsh(argument: str) -> str:
    """``argument`` so that it arrives as it is, after DeepSpeed, pdsh and the shell of the other host.

    DeepSpeed puts arguments that hold a space in double quotes, escaping double quotes only.
    """
    escaped = argument.replace("%", "%%")  # pdsh puts the host's name for %h
    if " " in escaped:
        return re.sub(r"([\\$`])", r"\\\1", escaped)
    return shlex.quote(escaped)


def words(command: Sequence[str]) -> str:
    """``command`` as a shell takes it."""
    return " ".join(shlex.quote(word) for word in command)


STARTERS: dict[str, Callable[[Job], Start]] = {
    "local": _local,
    "pdsh": _pdsh,
    "openmpi": _openmpi,
    SLURM: _srun,
}
"""By the name that ``--launcher`` takes."""


def start_of(job: Job) -> Start:
    """How ``job.launcher`` starts it."""
    return STARTERS[job.launcher](job)
