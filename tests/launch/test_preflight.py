"""Each failure that the check looks for is planted once: in facts of a host, in its ssh, and in real processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import preflight
from launch.hosts import Host
from launch.on_host import facts as facts_program
from launch.preflight import Finding, Wanted, bytes_planned, judge, judge_all_reduce, table
from launch.remote import Answer, Remote
from pretrain.config import load_config
from tests.distributed import free_port
from tests.launch.commands import write_run

ROOT = Path(__file__).parent.parent.parent
HOSTS = (Host("a", 2), Host("b", 2), Host("c", 2))
WANTED = Wanted(
    hosts=HOSTS, device="cuda", folder="/shared/project", shared="/shared/runs", port=29500, address="a",
    bytes_needed=10**9,
)  # fmt: skip
BEGIN = 1000.0


def good() -> dict[str, Any]:
    return {
        "time": BEGIN + 1,
        "hostname": "x",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19.8"},
        "project": {"importable": True, "revision": "abcdef"},
        "port_free": True,
        "shared": {"visible": True, "writable": True, "free_bytes": 2 * 10**9},
        "devices": {"count": 2, "names": ["H100", "H100"], "broken": {}},
    }


def judged(change: Callable[[dict[str, Any]], object], wanted: Wanted = WANTED, on: str = "b") -> list[Finding]:
    facts = {host.name: good() for host in HOSTS}
    change(facts[on])
    return judge(wanted, {name: Answer(one) for name, one in facts.items()}, BEGIN, BEGIN + 2)


def test_good_hosts_have_no_problem() -> None:
    findings = judged(lambda one: None)
    assert all(finding.good for finding in findings)
    assert {finding.check for finding in findings} == {
        "reachable", "python", "torch", "deepspeed", "project", "port", "shared folder", "disk", "devices", "clock"
    }  # fmt: skip
    assert table(findings).splitlines()[-1] == "every host is ready"


@pytest.mark.parametrize(
    ("check", "change", "found", "remedy"),
    [
        ("python", lambda f: f["versions"].update(python="3.12.1"), "3.12.1, other hosts have 3.11.9", "install p"),
        ("torch", lambda f: f["versions"].update(torch="2.12.0"), "other hosts have 2.13.0", "install torch 2.13.0"),
        ("deepspeed", lambda f: f["versions"].update(deepspeed=None), "missing", "install deepspeed 0.19.8"),
        ("project", lambda f: f["project"].update(importable=False), "not importable in /shared/project", "share the"),
        ("project", lambda f: f["project"].update(revision="123+"), "revision 123+, other hosts", "same revision"),
        ("shared folder", lambda f: f["shared"].update(visible=False), "is not seen", "mount the same file system"),
        ("shared folder", lambda f: f["shared"].update(writable=False, error="Read-only file system"),
         "not writable (Read-only file system)", "writable there"),
        ("disk", lambda f: f["shared"].update(free_bytes=10**8), "0.1 GB free, 1.0 GB planned", "checkpoint.keep_last"),
        ("devices", lambda f: f["devices"].update(count=1), "1 GPU, 2 slots", "slots=1"),
        ("devices", lambda f: f["devices"].update(broken={"1": "sums to nan"}), "GPU 1: sums to nan", "nvidia-smi"),
        ("devices", lambda f: f["devices"].update(count=0, error="no answer from the driver within 24 s"),
         "no answer from the driver", "drain the host"),
        ("clock", lambda f: f.update(time=BEGIN + 60), "58.0 s off", "NTP"),
        ("clock", lambda f: f.update(time=BEGIN - 10), "10.0 s off", "NTP"),
    ],
)  # fmt: skip
def test_a_failure_is_named_with_its_host_and_remedy(
    check: str, change: Callable[[dict[str, Any]], object], found: str, remedy: str
) -> None:
    (bad,) = [finding for finding in judged(change) if not finding.good]
    assert (bad.check, bad.host) == (check, "b")
    assert found in bad.found and remedy in bad.remedy
    text = table([bad])
    assert "FAIL" in text and f"-> {bad.remedy}" in text and text.endswith("1 problem")


def test_a_taken_port_counts_where_the_hosts_meet() -> None:
    (bad,) = [one for one in judged(lambda f: f.update(port_free=False), on="a") if not one.good]
    assert (bad.check, bad.found) == ("port", "29500 is taken") and "--master-port" in bad.remedy
    assert all(one.good for one in judged(lambda f: f.update(port_free=False), on="c"))


def test_without_gpus_a_run_on_cpu_is_fine_and_auto_says_so() -> None:
    def none(facts: dict[str, Any]) -> None:
        facts["devices"] = {"count": 0, "names": [], "broken": {}}

    assert all(one.good for one in judged(none, replace(WANTED, device="cpu")))
    told = [one.found for one in judged(none, replace(WANTED, device="auto")) if one.check == "devices"]
    assert "no GPU; train.device is auto, so the run uses the CPU" in told


def test_an_all_reduce_names_who_could_not() -> None:
    well = Answer({"seconds": 0.01, "error": None})
    (one,) = judge_all_reduce({"a": well, "b": Answer({"seconds": 0.02, "error": None})}, "a", 1)
    assert one.good and one.found == "16 MB in 20.0 ms over 2 hosts"
    findings = judge_all_reduce({"a": well, "b": Answer(None, "no answer within 24 s")}, "a", 29500)
    (bad,) = findings
    assert (bad.host, bad.found) == ("b", "no answer within 24 s")
    assert "--interface" in bad.remedy and "a:29500" in bad.remedy


SSH = """#!/bin/bash
# Stands in for ssh: options, then the host, then one command line for the shell over there.
while [ "${1:0:1}" = - ]; do shift 2; done
host=$1; shift
case $host in
  gone) echo "ssh: connect to host gone port 22: No route to host" >&2; exit 255 ;;
  hangs) exec sleep 60 ;;
  denied) echo "root@denied: Permission denied (publickey)." >&2; exit 255 ;;
  nopython) echo "bash: line 1: /shared/env/bin/python: No such file or directory" >&2; exit 127 ;;
esac
exec bash -c "$*"
"""


@pytest.fixture
def fake(tmp_path: Path) -> Remote:
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    return Remote(kind="ssh", python=sys.executable, ssh=(str(ssh),), variables=(("OMP_NUM_THREADS", "1"),))


def wanted_here(tmp_path: Path, *names: str, **changes: Any) -> Wanted:
    return replace(
        Wanted(
            hosts=tuple(Host(name, 1) for name in names), device="cpu", folder=str(ROOT), shared=str(tmp_path),
            port=free_port(), address="127.0.0.1", bytes_needed=1,
        ),
        **changes,
    )  # fmt: skip


def test_hosts_that_do_not_answer_are_named_and_nothing_hangs(
    fake: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "FACTS_SECONDS", 8.0)
    begin = time.monotonic()
    findings = preflight.preflight(wanted_here(tmp_path, "fine", "gone", "hangs", "denied", "nopython"), fake)
    assert time.monotonic() - begin < 20
    bad = {one.host: one.found for one in findings if not one.good}
    assert bad == {
        "gone": "exit code 255: ssh: connect to host gone port 22: No route to host",
        "hangs": "no answer within 8 s",
        "denied": "exit code 255: root@denied: Permission denied (publickey).",
        "nopython": "exit code 127: bash: line 1: /shared/env/bin/python: No such file or directory",
    }
    assert not any(one.check == "all-reduce" for one in findings), "with a host missing it could only time out"
    assert not list(tmp_path.glob(".launch-check*")), "nothing is left in the shared folder"


def test_two_hosts_are_checked_for_real(fake: Remote, tmp_path: Path) -> None:
    findings = preflight.preflight(wanted_here(tmp_path, "one", "two"), fake)
    assert [one for one in findings if not one.good] == []
    (timed,) = [one for one in findings if one.check == "all-reduce"]
    assert timed.found.endswith("over 2 hosts")


def test_a_folder_that_cannot_be_written_is_told(fake: Remote, tmp_path: Path) -> None:
    findings = preflight.preflight(wanted_here(tmp_path, "one", shared=str(tmp_path / "none")), fake)
    bad = {(one.check, one.host) for one in findings if not one.good}
    assert {("shared folder", "here"), ("shared folder", "one")} <= bad


def test_an_all_reduce_that_one_host_misses_ends_in_time(fake: Remote, tmp_path: Path) -> None:
    begin = time.monotonic()
    findings = preflight.all_reduce(wanted_here(tmp_path, "one", "gone"), fake, 15.0)
    assert time.monotonic() - begin < 20
    assert {one.host for one in findings if not one.good} == {"one", "gone"}


def test_the_facts_program_tells_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("other content")
    found = facts_program.shared(str(tmp_path), "token", "content", "a")
    assert (found["visible"], found["writable"]) == (False, True)
    assert facts_program.shared(str(tmp_path / "none"), "token", "c", "a")["error"] == "No such file or directory"
    monkeypatch.setattr(facts_program, "DEVICES", "import time; time.sleep(9)")
    assert facts_program.devices("cuda", 0.2)["error"] == "no answer from the driver within 0 s"
    monkeypatch.setattr(facts_program, "DEVICES", "raise SystemExit('driver too old')")
    assert facts_program.devices("cuda", 20)["error"] == "driver too old"
    assert facts_program.guarded(lambda: 1 / 0) == {"error": "ZeroDivisionError: division by zero"}


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        assert not facts_program.port_is_free(server.getsockname()[1])
    assert facts_program.port_is_free(free_port())


def test_planned_bytes_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    """A tiny model's: 13 bytes for an aged weight, 12 for another, and masks; times those kept, and one more."""
    once = bytes_planned(load_config(write_run(tmp_path))) // 2
    config = load_config(write_run(tmp_path, checkpoint__interval=2, checkpoint__keep_last=3, train__steps=14))
    assert bytes_planned(config) == 4 * once
    config = load_config(write_run(tmp_path, checkpoint__interval=2, checkpoint__keep_last=0, train__steps=14))
    assert bytes_planned(config) == 9 * once
    config.model.num_hidden_layers = 4
    assert bytes_planned(config) > 9 * once * 1.3


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.__main__ import main

    monkeypatch.chdir(tmp_path)
    run = str(write_run(tmp_path))
    found = [Finding("disk", "a", False, "full", "free space")]
    monkeypatch.setattr(preflight, "preflight", lambda wanted, remote: found)
    assert main(["check", run, "--gpus-per-node", "1"]) == 2
    assert "FAIL  disk" in capsys.readouterr().out
    assert main([run, "--check", "--gpus-per-node", "1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "ready": False,
        "findings": [{"check": "disk", "host": "a", "good": False, "found": "full", "remedy": "free space"}],
    }
    found[0] = replace(found[0], good=True)
    assert main(["check", run, "--gpus-per-node", "1"]) == 0
