"""Ports that another run holds: a free one is found, or the line says who holds it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch import preflight
from launch.__main__ import main
from launch.attempt import with_meeting_point
from launch.hosts import Host
from launch.job import Job
from launch.remote import Remote
from pretrain import ports
from pretrain.errors import LaunchError
from tests.launch.commands import prepared, write_run


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # not on all addresses: a rendezvous is in its way all the same
        server.listen()
        yield server.getsockname()[1]


def job(launcher: str, port: int, **more: object) -> Job:
    base = Job(
        launcher=launcher, config="c", overrides=(), hosts=(Host("localhost", 2),), variables={}, python="python3",
        folder="/", port=port,
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("launcher", ["local", "openmpi", "pdsh", "srun"])
def test_a_start_takes_the_next_free_port(busy: int, launcher: str) -> None:
    import sys

    remote = Remote(kind="local", python=sys.executable)
    found, problem = with_meeting_point(job(launcher, busy), remote)
    assert problem is None and busy < found.port < busy + 200 and ports.is_free(found.port)
    kept, _ = with_meeting_point(job(launcher, busy, port_is_given=True), remote)
    assert kept.port == busy


def test_a_given_port_that_is_taken_ends_with_its_holder(
    busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(write_run(tmp_path)), "--gpus-per-node", "1", "--master-port", str(busy)]) == 2
    line = capsys.readouterr().err
    assert f"port {busy} of " in line and "is held by process " in line and "such as `--master-port " in line


def test_a_check_beside_another_run_finds_a_port(busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(preflight, "preflight", lambda wanted, remote: asked.append(wanted) or [])
    found = prepared([str(write_run(tmp_path)), "--gpus-per-node", "1"])
    preflight.of(found.config, replace(found.job, port=busy), found.remote)
    (wanted,) = asked
    assert wanted.port != busy and wanted.first_port == busy
    finding = preflight._port("localhost", {"port_free": True}, wanted)
    assert finding.good and finding.found == f"{wanted.port} free; {busy} is taken"


def test_where_all_are_taken_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(LaunchError, match="ports 29500 to 29699 are all taken; give --master-port"):
        ports.next_free(29500)
