"""The command line of ``python -m launch``."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from pretrain.command import program
from pretrain.numbers import count, finite
from pretrain.paths import path_text

from .attempt import Watch
from .starts import SLURM, STARTERS
from .supervisor import Policy

EPILOG = """other commands:
  {launch} check CONFIG ...   whether every host is fit for the run (same options; also --check)
  {launch} status RUN_DIR     how a run is doing

exit codes: 0 done, 75 stopped early and saved (start again to go on), 1 given up, 2 something you have to mend.
docs/clusters.md goes from one machine to many."""


def run_parser() -> argparse.ArgumentParser:
    """Options of a start and of a check."""
    parser = argparse.ArgumentParser(
        prog=program(str(__package__)),
        description="Start a run on one machine or many, and keep it running: restarted from its last good checkpoint, "
        "on the hosts that are left.",
        epilog=EPILOG.format(launch=program(str(__package__))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=path_text, help="run file (YAML), such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 parallel.tensor=2")
    where = parser.add_argument_group("where")
    where.add_argument("--local", action="store_true", help="this machine (the default)")
    where.add_argument("--hostfile", type=path_text, metavar="FILE", help="hosts over ssh (pdsh): lines 'NAME slots=N'")
    where.add_argument("--mpi", action="store_true", help="start with OpenMPI's mpirun, on --hostfile or this machine")
    where.add_argument(
        "--slurm", action="store_true", help="submit a Slurm job; inside one, start with srun. The job asks for a GPU "
        "per rank: give train.device=cpu on a cluster without",
    )  # fmt: skip
    where.add_argument(
        "--launcher", choices=[name for name in STARTERS if name != SLURM], metavar="NAME",
        help="what starts the ranks: %(choices)s; default what fits the place",
    )  # fmt: skip
    where.add_argument("--nodes", type=count, metavar="N", help="hosts to use; default all of --hostfile")
    where.add_argument(
        "--gpus-per-node", type=count, metavar="N",
        help="ranks per host; default what the hostfile or Slurm says, or this machine's GPUs",
    )  # fmt: skip
    _environment(parser.add_argument_group("what reaches the hosts"))
    _keep_running(parser.add_argument_group("keeping it running"))
    _slurm(parser.add_argument_group("Slurm jobs"))
    parser.add_argument("--check", action="store_true", help="see whether every host is fit, and start nothing")
    parser.add_argument("--preflight", action="store_true", help="check first, and start only if all is well")
    parser.add_argument("--dry-run", action="store_true", help="print the exact command or script, and start nothing")
    parser.add_argument("--json", action="store_true", help="print what is asked for as JSON")
    return parser


def _environment(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="carry this variable to the ranks; repeatable. .deepspeed_env files and NCCL_*, GLOO_*, OMP_* and the "
        "like (launch/environment.py) are carried anyway, nothing else is",
    )  # fmt: skip
    group.add_argument("--interface", metavar="NAME", help="network interface between hosts, such as eth0")
    group.add_argument("--master-addr", metavar="HOST", help="address at which all hosts reach the first")
    group.add_argument(
        "--master-port",
        type=_port,
        metavar="PORT",
        help="where the ranks meet; default 29500, or the next that is free",
    )
    group.add_argument(
        "--ssh-args", type=_with_home, default="", metavar="ARGS", help="options for ssh, such as '-F file -p 2222'"
    )
    group.add_argument("--launcher-args", default="", metavar="ARGS", help="options for pdsh, mpirun or srun")


def _keep_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-restarts", type=partial(count, least=0), default=Policy.max_restarts, metavar="N",
        help="restarts in a row without a new step or checkpoint until it gives up; default %(default)s; "
        "0 = never restart",
    )  # fmt: skip
    group.add_argument(
        "--back-off", type=_seconds, default=Policy.back_off, metavar="SECONDS",
        help="wait before a restart, doubled each time that brought nothing, at most 10 minutes; default %(default)g",
    )  # fmt: skip
    group.add_argument(
        "--lost-after", type=_seconds, default=Watch.lost_after, metavar="SECONDS",
        help="a rank without a heartbeat for so long is lost; default %(default)g",
    )  # fmt: skip
    group.add_argument(
        "--host-interval", type=_seconds, default=Watch.host_interval, metavar="SECONDS",
        help="between looks whether hosts answer; one that twice does not, while the run stands, is lost; "
        "default %(default)g",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=_seconds, default=Watch.patience, metavar="SECONDS",
        help="for saving after a request to stop, before the run is ended by force; default %(default)g",
    )  # fmt: skip


def _slurm(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--time", metavar="LIMIT", help="time limit of one job, such as 24:00:00; it is requeued then")
    group.add_argument("--margin", type=count, default=300, metavar="SECONDS", help="time kept for saving; default 300")
    group.add_argument("--partition", metavar="NAME")
    group.add_argument("--account", metavar="NAME")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="more for sbatch: --sbatch=--qos=long",
    )


def status_parser() -> argparse.ArgumentParser:
    """Options of ``status``."""
    parser = argparse.ArgumentParser(
        prog=program(str(__package__), "status"), description="How a run is doing; it is not touched."
    )
    parser.add_argument("run", type=path_text, help="run folder (train.output_dir)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _with_home(text: str) -> str:
    """Options for another program, with ``~/`` at the beginning of a word filled in, as a shell would."""
    return re.sub(r"(?<!\S)~(?=/)", lambda _: str(Path.home()), text)


def _port(text: str) -> int:
    value = count(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"is {value}, expected 1 to 65535")
    return value


def _seconds(text: str) -> float:
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"is {text}, expected a number of seconds, 0 or more")
    return value
