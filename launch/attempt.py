"""One attempt at a run: its processes on all hosts, from their start to their end, whatever way that comes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.exit_codes import USER
from pretrain.ports import next_free
from pretrain.run_folder import RunReader

from .environment import LAUNCH_ID
from .job import Job, Start
from .names import require_host
from .remote import Remote, on_all
from .signals import Signals
from .starts import start_of


@dataclass(kw_only=True)
class Watch:
    """How long an attempt may go without a sign of life. Seconds."""

    lost_after: float = 180.0
    """Since a rank's heartbeat file last changed: its process or host is gone, or its disk."""
    start_within: float = 3600.0
    """Until every rank has a heartbeat."""
    host_interval: float = 30.0
    """Between two looks whether every host still answers."""
    patience: float = 600.0
    """From a request to stop until the run is ended by force; saving takes its time."""
    poll: float = 1.0


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    code: int
    """Exit code of the launcher; negative or above 128 where a signal ended something."""
    reason: str
    """In words, for the screen and events.jsonl."""
    lost: tuple[str, ...] = ()
    """Hosts that stopped answering."""


class Attempt:
    """Starts ``job``'s processes, watches them, and leaves none behind.

    Args:
        job: what to start.
        remote: how to reach the hosts.
        folder: the run folder.
        launch_id: mark of this attempt's processes.
        signals: what this process was told: the first is passed on to the ranks, an urgent one ends them.
        watch: limits.
    """

    def __init__(
        self,
        job: Job,
        remote: Remote,
        folder: Path,
        launch_id: str,
        signals: Signals,
        watch: Watch,
    ):
        self.job = replace(job, variables={**job.variables, LAUNCH_ID: launch_id})
        self.remote, self.folder, self.id = remote, folder, launch_id
        self.signals, self.watch = signals, watch
        self.names = [host.name for host in job.hosts]
        self._seen: dict[int, tuple[Any, float]] = {}
        self._before = {rank: record.get("alive") for rank, record in RunReader(folder).heartbeats().items()}
        self._signalled: dict[str, set[int]] = {name: set() for name in self.names}
        self._silent: dict[str, tuple[float, int]] = {}
        self.ranks_seen = 0

    def run(self) -> Ended:
        """Start, wait for the end, and clean up. No process of the attempt is left on a host that answers."""
        job, problem = with_meeting_point(self.job, self.remote)
        if problem:
            return problem
        start = start_of(job)
        with tempfile.TemporaryDirectory(prefix="smet-launch-") as scratch:
            command, variables = _write_files(start, Path(scratch))
            environment = {**os.environ, **variables, LAUNCH_ID: self.id}
            try:
                # A session of its own: Ctrl-C reaches this program only, which passes it on to the ranks. DeepSpeed,
                # asked to end over ssh, would end every run of this Python on the hosts, this one or not.
                process = subprocess.Popen(
                    command, env=environment, cwd=self.job.folder, stdin=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                return Ended(127, f"{command[0]} cannot be started: {error.strerror}")
            try:
                ended = self._wait(process)
            finally:
                self._clean_up(process)
        return ended

    def _wait(self, process: subprocess.Popen[bytes]) -> Ended:
        began = looked = time.monotonic()
        asked: float | None = None
        forwarded: signal.Signals | None = None
        while (code := process.poll()) is None:
            if self.signals.urgent:
                return Ended(-signal.SIGKILL, "ended at once, as asked")
            if self.signals.first and forwarded is None:
                forwarded, asked = self.signals.first, time.monotonic()
                print(f"{forwarded.name}: the run saves and stops; once more to end it at once", flush=True)
            now = time.monotonic()
            if forwarded is not None:
                self._forward(process, forwarded)
                if now - (asked or now) > self.watch.patience:
                    return Ended(-signal.SIGKILL, f"did not stop within {self.watch.patience:.0f} s of being asked")
            if problem := self._lost_rank(now, began):
                return Ended(-signal.SIGKILL, problem, self._unreachable())
            if now - looked >= self.watch.host_interval:
                looked = now
                if lost := self._lost_hosts():
                    return Ended(-signal.SIGKILL, f"{', '.join(lost)} stopped answering", lost)
            time.sleep(self.watch.poll)
        self._look()
        return Ended(code, _in_words(code))

    def _look(self) -> dict[int, float]:
        """Seconds since each rank's heartbeat changed; ranks that have written none in this attempt are left out.

        By this machine's clock and the files' content, so that no clock of another host matters.
        """
        now = time.monotonic()
        for rank, record in RunReader(self.folder).heartbeats().items():
            alive = record.get("alive")
            known = self._seen.get(rank)
            if rank >= self.job.world or (known is None and alive == self._before.get(rank)):
                continue  # left by an earlier attempt
            if known is None or known[0] != alive:
                self._seen[rank] = (alive, now)
        self.ranks_seen = len(self._seen)
        return {rank: now - when for rank, (_, when) in self._seen.items()}

    def _lost_rank(self, now: float, began: float) -> str:
        ages = self._look()
        missing = self.job.world - len(ages)
        if missing > 0 and now - began > self.watch.start_within:
            return f"{missing} of {self.job.world} ranks gave no sign of life within {self.watch.start_within:.0f} s"
        if not any(age > self.watch.lost_after for age in ages.values()):
            return ""
        records = RunReader(self.folder).heartbeats()
        late = [
            rank
            for rank, age in ages.items()
            if age > self.watch.lost_after and records.get(rank, {}).get("phase") != "ended"
        ]
        if not late:
            return ""
        first = records.get(late[0], {})
        others = f" and {len(late) - 1} more" if len(late) > 1 else ""
        return (
            f"rank {late[0]} on {first.get('host', 'a host')}{others} gave no sign of life for "
            f"{ages[late[0]]:.0f} s, in phase {first.get('phase', '?')}"
        )

    def _unreachable(self) -> tuple[str, ...]:
        """Hosts that do not answer."""
        if self.remote.kind == "local":
            return ()
        answers = on_all(self.names, self.remote.reachable)
        return tuple(name for name, problem in answers.items() if problem)

    def _lost_hosts(self) -> tuple[str, ...]:
        """Hosts that did not answer twice in a row, while the run did not get on.

        A run that goes on needs all its hosts: then only ssh is in trouble, which is no reason to end it.
        """
        step = RunReader(self.folder).reached().step
        gone = self._unreachable()
        lost = tuple(name for name in gone if self._silent.get(name, ("", -1))[1] == step)
        self._silent = {name: (time.monotonic(), step) for name in gone}
        return lost

    def _forward(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Ask every rank that has not been asked yet to save and stop; ranks may still be starting."""
        if sum(len(pids) for pids in self._signalled.values()) >= self.job.world:
            return
        if self.job.launcher == "srun":
            process.send_signal(signal.SIGUSR1)  # srun passes it on; SIGTERM would end the job step
            self._signalled[self.names[0]] = set(range(self.job.world))
            return
        name = (number if number == signal.SIGUSR1 else signal.SIGTERM).name
        for host, pids in on_all(self.names, lambda host: self._signal(host, name, everything=False)).items():
            self._signalled[host].update(pids)

    def _signal(self, host: str, name: str, everything: bool) -> list[int]:
        already = [] if everything else sorted(self._signalled[host])
        task = {"id": self.id, "signal": name, "everything": everything, "already": already}
        answer = self.remote.ask(host, "processes", task, timeout=20.0)
        return list(answer.value["pids"]) if answer.value else []

    def _clean_up(self, process: subprocess.Popen[bytes]) -> None:
        """End what is left: the launcher here by its session, the rest on every host by its mark."""
        if process.poll() is None:
            _kill_session(process.pid)
            process.wait()
        if self.job.launcher != "srun":  # srun's end is the step's end
            on_all(self.names, lambda host: self._signal(host, "SIGKILL", everything=True))
        _kill_session(process.pid)


def with_meeting_point(job: Job, remote: Remote) -> tuple[Job, Ended | None]:
    """``job`` with the first host's address and a port that is free there, or how the attempt ends without them."""
    if job.launcher == "local":
        return job if job.port_is_given else replace(job, port=next_free(job.port)), None
    if job.port_is_given and (job.address or job.launcher == "srun"):
        return job, None
    address, port, problem = meeting_point(job, remote)
    if job.launcher == "srun":  # needs no address; where its first host does not answer, the ranks will say more
        return replace(job, port=port), None
    return replace(job, port=port, address=job.address or address), None if job.address else problem


def meeting_point(job: Job, remote: Remote) -> tuple[str, int, Ended | None]:
    """Address of the first host and a port that is free there, or how an attempt ends without an address."""
    name = job.hosts[0].name
    answer = remote.ask(name, "address", {"interface": job.interface, "port": job.port}, timeout=20.0)
    if answer.value is None:
        return "", job.port, Ended(255, f"{name} does not tell its address: {answer.error}")
    port = job.port if job.port_is_given else int(answer.value["port"])
    if error := answer.value["error"]:
        return "", port, Ended(USER, f"{name} {error}; give --interface or --master-addr")
    return require_host(str(answer.value["address"]), f"the address that {name} tells"), port, None


def _write_files(start: Start, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Write the files of ``start``, and put their paths in place of the placeholders."""
    paths: dict[str, str] = {}
    for placeholder, text in start.files.items():
        path = scratch / placeholder.strip("{}")
        path.write_text(text, encoding="utf-8")
        paths[placeholder] = str(path)

    def filled(word: str) -> str:
        return paths.get(word, word)

    return [filled(word) for word in start.command], {k: filled(v) for k, v in start.variables.items()}


def _kill_session(leader: int) -> None:
    """SIGKILL every process of the session that ``leader`` opened. Exact: no other process can be in it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            session = int((entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[3])
            if session == leader:
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, IndexError, ValueError):
            continue


def _in_words(code: int) -> str:
    if code == 255:
        return "exit code 255: ssh to a host failed"
    if code < 0 or code > 128:
        # Python's sys.exit(-9) arrives as 247, a shell tells 137.
        number = -code if code < 0 else 256 - code if code > 192 else code - 128
        try:
            return f"a process was ended by {signal.Signals(number).name}"
        except ValueError:
            return f"exit code {code}"
    return f"exit code {code}"
