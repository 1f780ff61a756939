"""Two hosts over ssh: the check, a run by each way to start it, and a host that is cut off in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import NAMES, Hosts
from tests.cluster.runs import ROOT, Run, assert_equal, end, undisturbed
from tests.pretrain.runs import outcome

pytestmark = pytest.mark.cluster


def over_ssh(hosts: Hosts) -> list[str]:
    return ["--hostfile", str(hosts.hostfile()), "--interface", "eth0", f"--ssh-args=-F {hosts.ssh_config}"]


def stop_on_both(run: Run, *arguments: str, **environ: str) -> None:
    """Every rank is told, over ssh."""
    run.stop_midway(*arguments, **environ)
    assert run.hosts() == set(NAMES)


def test_check_run_and_go_on_with_plain_deepspeed(hosts: Hosts, tmp_path: Path) -> None:
    # The folder's name goes through DeepSpeed, pdsh and two shells.
    run = Run(tmp_path, name="run $5 50%h", checkpoint__interval=4, train__steps=60)
    checked = subprocess.run(
        [sys.executable, "-m", "launch", "check", str(run.file), *over_ssh(hosts), "--json"], cwd=ROOT,
        env=run.environ(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    report = json.loads(checked.stdout)
    assert report["ready"], [one for one in report["findings"] if not one["good"]]
    assert any(one["found"].endswith("over 2 hosts") for one in report["findings"])

    stop_on_both(run, *over_ssh(hosts), f"train.output_dir={run.output}")

    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    plain = subprocess.run(
        [str(Path(sys.executable).parent / "deepspeed"), "--hostfile", str(hosts.hostfile()), "--no_ssh_check",
         "--master_addr", hosts.addresses[NAMES[0]], "--module", "pretrain", str(run.file)],
        cwd=tmp_path, env=run.environ(PDSH_SSH_ARGS_APPEND=f"-F {hosts.ssh_config}", PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert_equal(run, undisturbed(run))


def test_openmpi(hosts: Hosts, tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint__interval=4, train__steps=60)
    options = [*over_ssh(hosts), "--mpi", f"--launcher-args=--mca oob_tcp_if_include {hosts.net}.0/24"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    stop_on_both(run, *options, **root)
    assert run.launch(*options, **root) == 0, run.screen()
    assert_equal(run, undisturbed(run))


def test_a_host_that_is_cut_off_is_left_out_and_nothing_is_lost(hosts: Hosts, tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint__interval=4, checkpoint__keep_last=0, train__steps=60)
    limits = ["--host-interval", "2", "--back-off", "1"]
    process = run.start(*over_ssh(hosts), *limits)
    try:
        # Saved in the background: step 10 can be over before the checkpoint of step 8 is published.
        run.until(lambda: run.step() >= 10 and len(run.published()) >= 2, process)
        hosts.cut_off(NAMES[1])
        before = run.published()
        assert process.wait(400) == 0, run.screen()
    finally:
        end(process)
    (restart,) = run.events("restart")
    assert (restart["hosts"], restart["world_size"]) == ([NAMES[0]], 1)
    assert NAMES[1] in restart["lost"]
    assert before <= run.published() and len(before) >= 2

    origin = tmp_path / "origin" / f"step-{restart['step']:08d}"
    shutil.copytree(run.output / "checkpoints" / origin.name, origin)
    (tmp_path / "again").mkdir()
    again = Run(tmp_path / "again", checkpoint__interval=4, checkpoint__keep_last=0, train__steps=60)
    assert again.launch("--gpus-per-node", "1", f"checkpoint.resume={origin}") == 0, again.screen()
    expected, found = outcome(again.output), outcome(run.output)
    first = restart["step"]
    assert found["steps"] == list(range(1, 61)) and expected["steps"] == list(range(first + 1, 61))
    assert found["losses"][first:] == expected["losses"]
