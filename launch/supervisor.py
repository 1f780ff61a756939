"""Keeps a run going: starts it again from its last good checkpoint, on the hosts that are left, while it gets on."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pretrain.command import told
from pretrain.config import RunConfig
from pretrain.errors import LaunchError
from pretrain.exit_codes import DONE, FAILED, STOPPED, STUCK, USER
from pretrain.numbers import so_far
from pretrain.run_folder import Reached, RunReader, note

from .attempt import Attempt, Ended, Watch
from .ends import with_overrides
from .hosts import Choice, Host, choose
from .job import Job
from .remote import Remote, on_all
from .signals import Signals


@dataclass(kw_only=True)
class Policy:
    """When a run is started again."""

    max_restarts: int = 20
    """Restarts in a row without forward progress after which it is given up."""
    back_off: float = 5.0
    """Seconds before the first restart without progress; each further one waits twice as long."""
    longest_wait: float = 600.0


class Runner(Protocol):
    """One attempt; a stand-in takes its place in tests."""

    ranks_seen: int

    def run(self) -> Ended:
        """Start it, and tell how it ended."""
        ...


class Supervisor:
    """Runs attempts of ``job`` until the run is done, needs its user, was asked to stop, or does not get on.

    Args:
        job: as for the first attempt, on all hosts.
        config: the run's settings.
        remote: how hosts are reached.
        policy: when to start again.
        watch: limits of an attempt.
        signals: what this process was told.
        attempt: makes one attempt; tests give their own.
        sleep: waits; tests give their own.
        command: how this program was called, for advice; empty: not known.
    """

    def __init__(
        self,
        job: Job,
        config: RunConfig,
        remote: Remote,
        policy: Policy,
        watch: Watch,
        signals: Signals,
        attempt: Callable[..., Runner] = Attempt,
        sleep: Callable[[float], None] = time.sleep,
        command: str = "",
    ):
        self.job, self.config, self.remote = job, config, remote
        self.policy, self.watch, self.signals = policy, watch, signals
        self.command = command
        self._attempt, self._sleep = attempt, sleep
        self.folder = Path(config.train.output_dir)
        if not self.folder.is_absolute():
            self.folder = Path(job.folder) / self.folder
        self.id = secrets.token_hex(6)
        self.number = 0

    def run(self) -> int:
        """Returns one of ``pretrain.exit_codes``; the last line says what is saved, and what goes on from there."""
        code = self._run()
        print(self._last_line(code), flush=True)
        return code

    def _last_line(self, code: int) -> str:
        step, total = RunReader(self.folder).reached().step, self.config.train.steps
        if code == DONE and step >= total:
            shown = f"to see it: {told('plot', str(self.folder))}"
            return f"done: step {so_far(step, total)}, {RunReader(self.folder).saved()}; {shown}"
        overrides = ["train.stop_at=0"] if code == DONE else []
        same = "the same command" + "".join(f" with {override}" for override in overrides)
        command = with_overrides(self.command, overrides) if self.command else same
        ended = {DONE: "stopped at train.stop_at", STOPPED: "stopped as asked"}.get(code, "ended")
        then = "when that is mended" if code == USER else "to go on"
        return f"{ended}: step {so_far(step, total)}, {RunReader(self.folder).saved()}; {then}: {command}"

    def _run(self) -> int:
        best = RunReader(self.folder).reached()
        idle = 0
        choice: Choice | None = Choice(
            hosts=self.job.hosts, micro_batch_size=self.config.train.micro_batch_size
        )  # the first attempt takes what the user gave
        self._note("launch", hosts=_names(self.job.hosts), world_size=self.job.world, command=self.command)
        while True:
            ended = Ended(FAILED, "no host answers, or too few for this run")
            if choice is not None:
                ended = self._once(choice)
                if (code := self._final(ended, best)) is not None:
                    return code
            now = RunReader(self.folder).reached()
            idle = 0 if now.beyond(best) else idle + 1
            best = best.best(now)
            if self.policy.max_restarts == 0:
                print(f"error: the run failed ({ended.reason}), and is not to be restarted", flush=True)
                return FAILED
            if idle > self.policy.max_restarts:
                print(
                    f"error: {idle} attempts in a row brought neither a checkpoint nor a step beyond step {best.step} "
                    f"(last: {ended.reason}); see the run's output above, then start it again",
                    flush=True,
                )
                self._note("gave up", reason=ended.reason, attempts=self.number)
                return FAILED
            if not self._wait_for_restart(idle):
                return STOPPED
            self.number += 1
            choice = self._next_choice()
            self._tell_restart(ended, choice)

    def require_hosts(self) -> None:
        """See that every host answers before the first attempt: later ones go on without those that do not.

        Raises:
            LaunchError: one does not.
        """
        problems = {} if self.remote.kind == "local" else on_all(_names(self.job.hosts), self.remote.reachable)
        for name, problem in problems.items():
            if problem:
                raise LaunchError(
                    f"{name} does not answer ({problem}); mend it, or take it out of the hosts; "
                    f"{told('launch', 'check')} tells more"
                )

    def _once(self, choice: Choice) -> Ended:
        job = replace(
            self.job,
            hosts=choice.hosts,
            port=self.job.port + self.number % 64,  # a port that a lost process still holds is in nobody's way
            overrides=(*self.job.overrides, *self._changed(choice)),
            address=self.job.address if choice.hosts[:1] == self.job.hosts[:1] else None,
        )
        attempt = self._attempt(job, self.remote, self.folder, f"{self.id}-{self.number}", self.signals, self.watch)
        ended = attempt.run()
        if ended.code == STUCK:
            ended = replace(ended, reason=self._who_was_stuck() or "nothing moved any more")
        short = 0 < attempt.ranks_seen < job.world
        if ended.code == DONE and short:
            reason = f"it ran on {attempt.ranks_seen} ranks, not the {job.world} asked for: see the launcher's options"
            return Ended(USER, reason)
        return ended

    def _who_was_stuck(self) -> str:
        """What the run's watchdog found, if it got to write it down."""
        found = [event for event in RunReader(self.folder).events() if event.get("kind") == "stuck"]
        return str(found[-1].get("text", "")) if found else ""

    def _changed(self, choice: Choice) -> tuple[str, ...]:
        size = choice.micro_batch_size
        return () if size == self.config.train.micro_batch_size else (f"train.micro_batch_size={size}",)

    def _final(self, ended: Ended, best: Reached) -> int | None:
        """The exit code with which the supervisor ends now, or None: start again."""
        if ended.code in (DONE, USER):
            if ended.code == USER:
                print(f"the run needs its user ({ended.reason}): not started again", flush=True)
            return ended.code
        if self.signals.urgent:
            print("ended at once; what the last checkpoint holds is safe", flush=True)
            return FAILED
        if self.signals.first or ended.code == STOPPED:
            return self._stopped(ended, best)
        return None

    def _stopped(self, ended: Ended, best: Reached) -> int:
        """Stopped early; whoever starts it again, such as Slurm, must not do so for ever if nothing is won."""
        now = RunReader(self.folder).reached()
        self._note("ended", reason=ended.reason, **vars(now))
        if now.beyond(best):
            return STOPPED
        fruitless = 0
        for event in reversed(RunReader(self.folder).events()):
            if event.get("kind") == "ended":
                if (event.get("checkpoint"), event.get("step")) != (now.checkpoint, now.step):
                    break
                fruitless += 1
        if fruitless > self.policy.max_restarts:
            print(
                f"error: stopped {fruitless} times in a row at step {now.step} without getting on; "
                "give the run more time between stops",
                flush=True,
            )
            return FAILED
        return STOPPED

    def _wait_for_restart(self, idle: int) -> bool:
        """Back off; False where a signal asks to stop meanwhile. A run that got on is started again soon."""
        seconds = self.policy.back_off * 2.0 ** max(0, idle - 1)
        until = min(seconds, self.policy.longest_wait) * random.uniform(0.9, 1.1)
        while until > 0:
            if self.signals.first:
                return False
            self._sleep(min(1.0, until))
            until -= 1.0
        return self.signals.first is None

    def _next_choice(self) -> Choice | None:
        """What of the hosts of the first attempt answers now; a host that came back is used again."""
        hosts: Sequence[Host] = self.job.hosts
        if self.remote.kind != "local":
            problems = on_all([host.name for host in hosts], self.remote.reachable)
            for name, problem in problems.items():
                if problem:
                    print(f"{name} is left out: {problem}", flush=True)
            hosts = [host for host in hosts if not problems[host.name]]
        choice = choose(self.config, hosts)
        if choice is None and hosts:
            shards = self.config.parallel.tensor * self.config.parallel.pipeline
            print(
                f"{sum(host.slots for host in hosts)} ranks are left, expected a multiple of parallel.tensor x "
                f"parallel.pipeline = {shards} that divides the global batch; waiting for more hosts",
                flush=True,
            )
        return choice

    def _tell_restart(self, ended: Ended, choice: Choice | None) -> None:
        hosts = choice.hosts if choice else ()
        world = choice.world if choice else 0
        now = RunReader(self.folder).reached()
        origin = f"checkpoint of step {now.checkpoint}" if now.checkpoint else "the beginning"
        where = ", ".join(_names(hosts)) or "no host"
        print(
            f"restart {self.number} after {ended.reason}: from {origin}, {world} ranks on {where}",
            flush=True,
        )
        self._note(
            "restart", attempt=self.number, reason=ended.reason, exit_code=ended.code, lost=list(ended.lost),
            hosts=_names(hosts), world_size=world, step=now.checkpoint,
        )  # fmt: skip

    def _note(self, kind: str, **more: Any) -> None:
        note(self.folder, {"time": time.time(), "kind": kind, **more})


def _names(hosts: Sequence[Host]) -> list[str]:
    return [host.name for host in hosts]
