"""Thirty environments in which a start of the program goes wrong, as data, and how each is tried."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from smet.kernels.compiler import cache_folder
from tests.distributed import free_port

ROOT = Path(__file__).parent.parent.parent
PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
WAITS = None
"""Exit code of a start that goes on waiting, and says so."""
FIRST_LINE_SECONDS, SIGNAL_SECONDS = 10.0, 5.0
SLOWER = float(os.environ.get("SMET_TEST_SLOWER", "1"))
"""Times longer that a start may take on a machine that is not quiet."""


@dataclass(frozen=True)
class Case:
    """One environment.

    Attributes:
        code: exit code, or ``WAITS``.
        line: part of a line on the screen.
        given: variables; ``{port}`` is a free port, ``{busy}`` one that is taken, ``{host}`` this host's name.
        overrides: for the run file; ``{here}`` is an empty folder, ``{place}`` what ``mount`` makes.
        mount: options of a small disk at ``{place}``, made by who may; empty: an ordinary folder.
        command: what starts the program.
        twice: start a second, equal process a second later, and look at that.
        quick: whether it belongs to the sample that every change is tested with.
    """

    name: str
    code: int | None
    line: str
    given: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    mount: str = ""
    command: tuple[str, ...] = (sys.executable, "-m", "pretrain")
    twice: bool = False
    quick: bool = False


def place(rank: int, world: int, **more: str) -> dict[str, str]:
    """As torch's launcher sets it."""
    given = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    return {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}", **more}


SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}
TORCHRUN = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
CACHE = str(cache_folder().parent.parent)
"""Where built kernels are, wherever ``~`` is: a build would be a case of its own."""
DEEPSPEED = (str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2")
TRAINS = "sparse-layer weights active"

CASES = [
    # variables that are missing, or make no sense
    Case("rank only", 2, "RANK is set ('0') and WORLD_SIZE is not", {"RANK": "0"}, quick=True),
    Case("world size only", 2, "WORLD_SIZE is set ('2') and RANK is not", {"WORLD_SIZE": "2"}),
    Case("no address", 2, "MASTER_ADDR is not set", {"RANK": "0", "WORLD_SIZE": "2"}, quick=True),
    Case("rank beyond the world", 2, "RANK is 2, expected 0 to WORLD_SIZE - 1 = 1", place(2, 2)),
    Case("rank no number", 2, "RANK is 'zero'", place(0, 2, RANK="zero")),
    Case("empty variables", 2, "RANK is ''", place(0, 2, RANK="", WORLD_SIZE="")),
    Case("port no number", 2, "MASTER_PORT is '29x'", place(0, 2, MASTER_PORT="29x")),
    Case("port 0", 2, "MASTER_PORT is 0, expected 1 to 65535", place(0, 2, MASTER_PORT="0")),
    # variables that are left over
    Case("first of two, alone", WAITS, "waiting: rank 1 of 2 did not come yet to 127.0.0.1:", place(0, 2), quick=True),
    Case("second of two, alone", WAITS, "waiting: rank 1 of 2 waits for rank 0 at", place(1, 2)),
    Case("a torchrun that has ended", WAITS, "waits for torchrun at 127.0.0.1:", place(0, 2, **TORCHRUN)),
    Case("local rank of eight", 0, TRAINS, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}),
    # of other launchers, and doubled
    Case("the shell of a Slurm job", 2, "this is the shell of a Slurm job of 4 tasks", SLURM, quick=True),
    Case("srun --pty", WAITS, "srun --pty starts a program in the first task only", {
        **SLURM, **MET, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PTY_PORT": "4"}),
    Case("salloc's shell", 0, "note: this shell holds a Slurm allocation for 4 tasks", {"SLURM_NTASKS": "4"}),
    Case("OpenMPI without address", 2, "OpenMPI started 2 processes without MASTER_ADDR", OPENMPI),
    Case("OpenMPI, one of two", WAITS, "waits for rank 0", {**OPENMPI, **MET}),
    Case("MPICH, one of two", WAITS, "rank 1 of 2 did not come yet", {"PMI_RANK": "0", "PMI_SIZE": "2", **MET}),
    Case("one process, and OpenMPI's two", 0, "note: OpenMPI speaks of 2 processes, but WORLD_SIZE is 1", {
        **OPENMPI, **place(0, 1)}),
    Case("two processes of one rank", 2, "is held by process", place(0, 2), twice=True),
    # names and ports
    Case("first, unresolvable name", WAITS, "MASTER_ADDR no.such.host.invalid does not resolve", place(
        0, 2, MASTER_ADDR="no.such.host.invalid")),
    Case("second, no name at all", WAITS, "does not resolve", place(1, 2, MASTER_ADDR="a b" * 30)),
    Case("another host's address", WAITS, "does not reach itself at", place(0, 2, MASTER_ADDR="192.0.2.1")),
    Case("port taken", 2, "is held by process", place(0, 2, MASTER_PORT="{busy}"), quick=True),
    Case("port taken, deepspeed", 2, "such as `--master_port ", command=(
        *DEEPSPEED, "--master_port", "{busy}", "--module", "pretrain")),
    Case("another program at the port", WAITS, "what listens there is no rank 0 of a run", place(
        1, 2, MASTER_PORT="{busy}")),
    # places
    Case("output below a file", 2, "file (it is a file); choose another", {}, ("train.output_dir={here}/file/run",),
         quick=True),
    Case("output in ~", 0, TRAINS, {"HOME": "{here}", "XDG_CACHE_HOME": CACHE}, ("train.output_dir=~/run",)),
    Case("no GPU", 2, "train.device is cuda, and", overrides=("train.device=cuda",)),
    Case("no folder for temporary files", 0, TRAINS, {"TMPDIR": "{here}/none"}),
]  # fmt: skip
BUILDS = "building cpu.cpp with"
"""What is said where no kernels are kept, and waited for; it trains afterwards."""
DISKS = [
    Case("output read-only", 2, "(the disk is read-only); choose another", {}, ("train.output_dir={place}/run",), "ro"),
    Case("output full", 2, "bytes are free); choose another", {}, ("train.output_dir={place}/run",), "size=4k"),
    Case("output and cache noexec", WAITS, BUILDS, {"XDG_CACHE_HOME": "{place}"}, ("train.output_dir={place}/run",),
         "noexec"),
    Case("cache read-only", WAITS, BUILDS, {"XDG_CACHE_HOME": "{place}"}, (), "ro"),
]  # fmt: skip
"""For who may mount disks."""


@dataclass
class Tried:
    """How a start went. Seconds."""

    line: str = ""
    first_line: float | None = None
    code: int | None = None
    ended: float | None = None


class Trial:
    """One start of a case; its screen goes to a file."""

    def __init__(self, case: Case, folder: Path, config: str):
        self.case, self.folder, self.config = case, folder, config

    def run(self, number: int | None = None, slower: float = SLOWER) -> Tried:
        """Start it; without ``number`` see what it says, else signal it and time its end."""
        self.slower = slower
        with self._busy() as busy:
            values = {"busy": str(busy), "port": str(free_port()), "host": socket.gethostname()}
            for name in ("here", "place"):
                values[name] = str(self.folder / name)
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "here" / "file").touch()
            first = self._start(values) if self.case.twice else None
            time.sleep(2.0 if first else 0.0)
            process = self._start(values)
            try:
                return self._look(process, number)
            finally:
                for one in (process, first):
                    if one is not None:
                        _kill(one)

    def _start(self, values: dict[str, str]) -> subprocess.Popen[bytes]:
        def filled(text: str) -> str:
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        words = [
            filled(word)
            for word in (*self.case.command, self.config, "train.steps=2", *self._output(), *self.case.overrides)
        ]
        if self.case.mount:
            mount = f'mount -t tmpfs -o {self.case.mount} tmpfs "$0" && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", mount, values["place"], *words]
        inherited = {name: value for name, value in os.environ.items() if name not in PLACES}
        variables = {name: filled(value) for name, value in self.case.given.items()}
        self.screen = self.folder / "screen"
        with open(self.screen, "wb") as screen:
            return subprocess.Popen(
                words, cwd=ROOT, env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables},
                stdin=subprocess.DEVNULL, stdout=screen, stderr=screen, start_new_session=True,
            )  # fmt: skip

    def _output(self) -> list[str]:
        own = any(word.startswith("train.output_dir") for word in self.case.overrides)
        return [] if own else [f"train.output_dir={self.folder}/run-{time.monotonic_ns()}"]

    def _look(self, process: subprocess.Popen[bytes], number: int | None) -> Tried:
        began, tried = time.monotonic(), Tried()
        limit = FIRST_LINE_SECONDS * self.slower
        while (spent := time.monotonic() - began) < (limit if number is None else 1.5) and process.poll() is None:
            if self._line() and tried.first_line is None:
                tried.first_line = spent
                if self.case.code is WAITS:
                    break
            time.sleep(0.02)
        if number is not None:
            process.send_signal(number)
            asked = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SIGNAL_SECONDS * self.slower)
            tried.ended = time.monotonic() - asked
        tried.code, tried.line = process.poll(), self._line()
        if tried.line and tried.first_line is None:
            tried.first_line = time.monotonic() - began
        return tried

    def _line(self) -> str:
        lines = self.screen.read_text(errors="replace").splitlines()
        return next((line for line in lines if self.case.line in line), "")

    @contextlib.contextmanager
    def _busy(self) -> Iterator[int]:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            yield server.getsockname()[1]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and what it has started: it opened a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
