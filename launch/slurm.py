"""Slurm: the batch script of a run, its submission, and what a job knows about its hosts."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from pretrain.errors import LaunchError
from pretrain.exit_codes import STOPPED

from .starts import words

GPUS = "--gpus-per-node="
TEMPLATE = Path(__file__).parent / "templates" / "job.sbatch"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a batch script is made of."""

    name: str
    nodes: int
    per_node: int
    gpus: bool
    """Whether ranks need a GPU each."""
    time: str | None
    """Time limit, as Slurm writes it; None = the partition's."""
    margin: int
    """Seconds ahead of the time limit at which the run is told to save."""
    partition: str | None
    account: str | None
    directives: tuple[str, ...]
    """More options for sbatch, such as ``--qos=long``."""
    folder: str
    variables: dict[str, str]
    command: tuple[str, ...]
    """What the first node runs: this program, inside the job."""


def render(batch: Batch) -> str:
    """The batch script."""
    given = [
        f"{GPUS}{batch.per_node}" if batch.gpus else "",
        f"--time={batch.time}" if batch.time else "",
        f"--partition={batch.partition}" if batch.partition else "",
        f"--account={batch.account}" if batch.account else "",
        *batch.directives,
    ]
    lines = [f"#SBATCH {line}" for line in given if line]
    return (
        Template(TEMPLATE.read_text(encoding="utf-8"))
        .substitute(
            name=batch.name, nodes=batch.nodes, per_node=batch.per_node, margin=batch.margin, stopped=STOPPED,
            directives="\n".join(lines) or "#", output="slurm-%j.out", folder=_quoted(batch.folder),
            exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in batch.variables.items()),
            command=words(batch.command),
        )
        .replace("\n#\n", "\n")
    )  # fmt: skip


def _quoted(path: str) -> str:
    """``path`` as a directive takes it: Slurm splits at blanks outside quotes."""
    if not any(letter in path for letter in " '\"\\#"):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def submit(script: str) -> str:
    """Hand the script to Slurm; returns the job's number.

    Raises:
        LaunchError: sbatch is missing, or refuses it.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except OSError:
        raise LaunchError(
            "sbatch is not installed here; submit from a machine of the cluster, or use --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError("sbatch gave no answer within 60 s; see that slurmctld runs (scontrol ping)") from None
    if done.returncode:
        asked = "; it asks for GPUs: on a cluster without, give train.device=cpu" if GPUS in script else ""
        raise LaunchError(f"sbatch refused the job: {' '.join(done.stderr.split())}{asked}")
    return done.stdout.strip().split(";")[0]


def expand(nodes: str) -> list[str]:
    """Names of Slurm's short form.

    Raises:
        LaunchError: scontrol is missing, or does not understand it.
    """
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(f"scontrol cannot tell the hosts of {nodes} ({error}); is this a Slurm job?") from None
    return done.stdout.split()


def job_name(output_dir: str) -> str:
    """A job's name from its run folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(output_dir).name) or "smet"


def flatten(options: Sequence[str]) -> tuple[str, ...]:
    """Options for sbatch, each with its dashes.

    Raises:
        LaunchError: one has none.
    """
    for option in options:
        if not option.startswith("--"):
            raise LaunchError(
                f"--sbatch is '{option}', expected an option with its dashes, such as --sbatch=--qos=long"
            )
    return tuple(options)
