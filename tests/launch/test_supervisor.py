"""When a run is started again, where, and when not: with stand-ins for attempts and hosts."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from launch.attempt import Ended, Watch
from launch.hosts import Host
from launch.job import Job
from launch.remote import Remote
from launch.signals import Signals
from launch.supervisor import Policy, Supervisor
from pretrain.config import load_config
from pretrain.errors import LaunchError
from pretrain.exit_codes import DONE, FAILED, STOPPED, STUCK, USER
from pretrain.run_folder import Reached
from tests.launch.commands import write_run

TWO = (Host("a", 2), Host("b", 2))


@dataclass
class Cluster:
    """What happens: how each attempt ends, and what it leaves behind; who answers when."""

    folder: Path
    script: list[tuple[Ended, Reached | None]]
    gone: dict[int, set[str]] = field(default_factory=dict)
    """attempt number -> hosts that do not answer before it."""
    signals: Signals = field(default_factory=Signals)
    jobs: list[Job] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    during: Callable[[int], None] = lambda number: None
    ranks_seen: int = 0

    def attempt(self, job: Job, *_: Any) -> Cluster:
        self.jobs.append(job)
        return self

    def run(self) -> Ended:
        number = len(self.jobs) - 1
        self.during(number)
        ended, leaves = self.script[number]
        if leaves is not None:
            publish(self.folder, leaves)
        return ended

    def reachable(self, host: str, timeout: float = 1.0) -> str:
        return "no route to host" if host in self.gone.get(len(self.jobs), set()) else ""


def publish(folder: Path, reached: Reached) -> None:
    """A run folder that has come so far."""
    checkpoint = folder / "checkpoints" / f"step-{reached.checkpoint:08d}"
    if reached.checkpoint:
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text("{}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, reached.step + 1)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small"


def supervise(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, hosts: tuple[Host, ...] = TWO, **policy: Any
) -> tuple[int, Supervisor]:
    config = load_config(write_run(cluster.folder.parent.parent))
    job = Job(
        launcher="pdsh", config="run.yaml", overrides=("x.y=1",), hosts=hosts, variables={}, python="python",
        folder=str(cluster.folder.parent.parent), address="10.0.0.1",
    )  # fmt: skip
    remote = Remote(kind="ssh", python="python")
    monkeypatch.setattr(Remote, "reachable", lambda self, host, timeout=1.0: cluster.reachable(host))
    supervisor = Supervisor(
        job, config, remote, Policy(**policy), Watch(), cluster.signals, cluster.attempt, cluster.slept.append
    )
    return supervisor.run(), supervisor


def noted(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
    lines = (cluster.folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def failing(reason: str = "exit code 1", code: int = 1) -> Ended:
    return Ended(code, reason)


@pytest.mark.parametrize("code", [DONE, USER])
def test_a_run_that_is_done_or_needs_its_user_is_not_restarted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cluster = Cluster(folder, [(Ended(code, "exit code"), None)])
    assert supervise(cluster, monkeypatch)[0] == code
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize("code", [FAILED, -9, 137, 247, 255])
def test_whatever_else_happens_it_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    cluster = Cluster(folder, [(failing(code=code), Reached(3, 5)), (Ended(DONE, ""), None)])
    assert supervise(cluster, monkeypatch)[0] == DONE
    (restart,) = noted(cluster, "restart")
    assert restart | {"time": 0} == {
        "time": 0, "kind": "restart", "attempt": 1, "reason": "exit code 1", "exit_code": code, "lost": [],
        "hosts": ["a", "b"], "world_size": 4, "step": 3,
    }  # fmt: skip
    assert cluster.jobs[1].port == cluster.jobs[0].port + 1
    assert cluster.jobs[1].overrides == ("x.y=1",)


def test_a_stuck_run_is_restarted_for_the_reason_that_its_watchdog_gave(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(folder, [(failing(code=STUCK), None), (Ended(DONE, ""), None)])

    def watchdog(number: int) -> None:
        if number == 0:
            with open(folder / "events.jsonl", "a") as file:
                file.write('{"time": 1, "kind": "stuck", "step": 3, "text": "rank 3 on b (pid 7): got least far"}\n')

    cluster.during = watchdog
    assert supervise(cluster, monkeypatch)[0] == DONE
    assert noted(cluster, "restart")[0]["reason"] == "rank 3 on b (pid 7): got least far"


def test_it_goes_on_with_the_hosts_that_are_left_and_takes_back_those_that_return(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [(failing(), Reached(2, 3)), (failing(), Reached(4, 5)), (Ended(DONE, ""), None)]
    cluster = Cluster(folder, script, gone={1: {"a"}})
    assert supervise(cluster, monkeypatch)[0] == DONE
    assert [[host.name for host in job.hosts] for job in cluster.jobs] == [["a", "b"], ["b"], ["a", "b"]]
    assert [job.address for job in cluster.jobs] == ["10.0.0.1", None, "10.0.0.1"], "that address was a's"
    assert [event["world_size"] for event in noted(cluster, "restart")] == [2, 4]


def test_ranks_that_the_batch_does_not_divide_among_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tuple(Host(name, 1) for name in "abcd")
    cluster = Cluster(folder, [(failing(), None), (Ended(DONE, ""), None)], gone={1: {"b"}})
    assert supervise(cluster, monkeypatch, hosts)[0] == DONE
    assert cluster.jobs[1].world == 2, "8 sequences do not divide among 3"


def test_with_no_host_left_it_waits_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(failing(), None), (Ended(DONE, ""), None)])
    tries: list[int] = []

    def reachable(host: str, timeout: float = 1.0) -> str:
        tries.append(len(tries))
        return "gone" if len(tries) <= 4 else ""

    cluster.reachable = reachable  # type: ignore[method-assign]
    assert supervise(cluster, monkeypatch)[0] == DONE
    assert [event["world_size"] for event in noted(cluster, "restart")] == [0, 0, 4]


def test_it_gives_up_when_nothing_is_won(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(folder, [(failing("exit code 1"), Reached(2, 3))] * 9)
    assert supervise(cluster, monkeypatch, max_restarts=3)[0] == FAILED
    assert len(cluster.jobs) == 1 + 1 + 3, "the first brought three steps; then a restart, and three without progress"
    assert "4 attempts in a row brought neither a checkpoint nor a step beyond step 3" in capsys.readouterr().out
    assert len(noted(cluster, "gave up")) == 1


def test_the_same_steps_again_are_no_progress(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [(failing(), Reached(4, 9))] + [(failing(), Reached(4, 5 + n)) for n in range(9)]
    cluster = Cluster(folder, script)
    assert supervise(cluster, monkeypatch, max_restarts=2)[0] == FAILED
    assert len(cluster.jobs) == 1 + 3


def test_a_run_that_gets_on_is_restarted_without_end_and_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [(failing(), Reached(n, n)) for n in range(1, 40)] + [(Ended(DONE, ""), None)]
    cluster = Cluster(folder, script)
    assert supervise(cluster, monkeypatch, max_restarts=1, back_off=1.0)[0] == DONE
    assert sum(cluster.slept) < 39 * 1.2


def test_waits_double_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(failing(), None)] * 9)
    supervise(cluster, monkeypatch, max_restarts=7, back_off=10.0, longest_wait=100.0)
    expected = 10 + 20 + 40 + 80 + 100 + 100 + 100
    assert 0.9 * expected < sum(cluster.slept) < 1.1 * expected


def test_zero_restarts_means_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(failing(), Reached(5, 5))])
    assert supervise(cluster, monkeypatch, max_restarts=0)[0] == FAILED


def test_a_run_stopped_early_is_handed_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(Ended(STOPPED, "exit code 75"), Reached(3, 3))])
    assert supervise(cluster, monkeypatch)[0] == STOPPED


def test_stops_that_win_nothing_do_not_go_on_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm requeues at every 75: a job whose time is over before its first step would come back for ever."""
    codes = []
    for _ in range(4):
        cluster = Cluster(folder, [(Ended(STOPPED, "exit code 75"), None)])
        codes.append(supervise(cluster, monkeypatch, max_restarts=2)[0])
    assert codes == [STOPPED, STOPPED, FAILED, FAILED]


@pytest.mark.parametrize("code", [STOPPED, -15, 143, 1])
def test_asked_to_stop_it_is_not_restarted_however_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cluster = Cluster(folder, [(failing(code=code), Reached(1, 1))])
    cluster.during = lambda number: cluster.signals.received.append(signal.SIGTERM)
    assert supervise(cluster, monkeypatch)[0] == STOPPED


def test_asked_twice_it_has_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(failing(code=-9), None)])
    cluster.during = lambda number: cluster.signals.received.extend([signal.SIGINT, signal.SIGINT])
    assert supervise(cluster, monkeypatch)[0] == FAILED


def test_slurms_warning_and_its_end_are_one_request() -> None:
    signals = Signals()
    signals.received = [signal.SIGUSR1, signal.SIGTERM]
    assert signals.first == signal.SIGUSR1 and not signals.urgent


def test_a_signal_while_it_waits_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(failing(), None)])
    cluster.slept = _Interrupting(cluster.signals)  # type: ignore[assignment]
    assert supervise(cluster, monkeypatch, back_off=60.0)[0] == STOPPED
    assert len(cluster.jobs) == 1


class _Interrupting(list):  # type: ignore[type-arg]
    def __init__(self, signals: Signals):
        super().__init__()
        self.signals = signals

    def append(self, seconds: float) -> None:
        super().append(seconds)
        if len(self) == 3:
            self.signals.received.append(signal.SIGTERM)


def test_a_world_smaller_than_asked_for_is_no_success(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers that start as many separate runs as there are processes end with exit code 0."""
    cluster = Cluster(folder, [(Ended(DONE, ""), None)], ranks_seen=1)
    assert supervise(cluster, monkeypatch)[0] == USER


def test_the_first_start_needs_all_hosts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder, [(Ended(DONE, ""), None)], gone={0: {"b"}, 1: {"b"}})
    _, supervisor = supervise(cluster, monkeypatch)
    with pytest.raises(LaunchError, match=r"b does not answer \(no route to host\)"):
        supervisor.require_hosts()
    supervisor.remote = replace(supervisor.remote, kind="local")
    supervisor.require_hosts()
