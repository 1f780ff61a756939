"""Names of hosts, interfaces, folders and variables that a shell, ssh or Slurm would obey are refused in one line."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.environment import for_ranks
from launch.hostfile import read_hostfile
from launch.hosts import Host, slurm_hosts
from launch.remote import Remote
from pretrain.errors import LaunchError

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
HOSTILE = (
    "-oProxyCommand=touch", "a;touch", "$(touch)", "`touch`", "a|b", "a&b", "a>b", "a'b", 'a"b', "a\\b", "a,b",
    "n[1-3]", "^/etc/passwd", "a%hb", "user@-oProxyCommand=x", "@a", "a@", "\x1b[31mred", "*", "~", "", "x\u202ey",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_host_is_a_plain_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError, match="expected a host: letters, digits"):
        Host(name, 1)
    if name:
        (tmp_path / "hosts").write_text(f"{name} slots=1\n")
        with pytest.raises(LaunchError):
            read_hostfile(tmp_path / "hosts")
        with pytest.raises(LaunchError):
            slurm_hosts({"SLURM_JOB_NODELIST": "x"}, 1, lambda nodes: [name])
        assert main([CONFIG, "--dry-run", f"--master-addr={name}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --master-addr names ") and error.count("\n") == 1 and "\x1b" not in error


@pytest.mark.parametrize("name", ("worker-1", "10.0.0.7", "fe80::1", "gpu_3.cluster.example.org", "me@worker-1", "a"))
def test_usual_names_are_taken(name: str) -> None:
    assert Host(name, 1).name == name


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--interface=eth0; touch x", "--interface is 'eth0; touch x', expected the name of a network interface"),
        ("--interface=-x", "--interface is '-x'"),
        ("--partition=a\ntouch x", "--partition is 'a\\ntouch x', expected one word"),
        ("--account=a b", "--account is 'a b', expected one word"),
        ("--time=1:00\n", "--time is '1:00\\n', expected one word"),
        ("--sbatch=--qos=a\ntouch x", "--sbatch is '--qos=a\\ntouch x', expected one line"),
        ("--env=A\nB=1", "--env is 'A\nB=1', expected NAME or NAME=VALUE"),
        ("--env=A=1\n2", "environment variable A holds a line break"),
    ],
)
def test_options_cannot_smuggle_commands_in(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--slurm", "--nodes=2", "--gpus-per-node=1", "--dry-run", option]) == 2
    assert said in capsys.readouterr().err


def test_a_variable_whose_name_is_a_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="has a name that no shell takes"):
        for_ranks({"NCCL_X;touch x": "1"}, [], [tmp_path], None, 1)


def test_a_folder_that_a_remote_shell_would_obey_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a; touch x #"
    folder.mkdir()
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    monkeypatch.chdir(folder)
    command = [CONFIG, "--dry-run", f"--hostfile={tmp_path / 'hosts'}"]
    assert main(command) == 2
    assert "expected a path without blanks or characters that a shell obeys" in capsys.readouterr().err
    # A batch script quotes it: the directive is one word for Slurm, and the command is the shell's own.
    assert main([CONFIG, "--dry-run", "--slurm", "--nodes=2", "--gpus-per-node=1"]) == 0
    script = capsys.readouterr().out
    [line] = [line for line in script.splitlines() if "--chdir=" in line]
    assert line == f'#SBATCH --chdir="{folder}"'


def test_words_of_a_remote_command_arrive_as_they_are(tmp_path: Path) -> None:
    """What ssh hands to the other shell; here a shell of this machine stands for it."""
    nasty = f"$(touch {tmp_path / 'it-ran'}); `touch {tmp_path / 'it-ran'}` 'a' \"b\" \\ \n|&<>*"
    remote = Remote(kind="ssh", python="python3", variables=(("A", nasty),))
    command = remote.command("one", ["printenv", "A"])
    assert command[0] == "ssh" and command[-2] == "one"
    done = subprocess.run(["sh", "-c", command[-1]], capture_output=True, text=True, check=True)
    assert done.stdout == nasty + "\n" and not (tmp_path / "it-ran").exists()
    assert shlex.split(command[-1])[0] == "env"


def test_what_a_host_answers_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    for answer in ("[1]", "[" * 100_000, "\x1b]0;title\x07"):
        (tmp_path / "ssh").write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
        (tmp_path / "ssh").chmod(0o755)
        got = Remote(kind="ssh", python="x", ssh=(str(tmp_path / "ssh"),)).ask("one", "address", {}, 20.0)
        assert got.value is None and got.error.startswith("exit code 0: ") and "\x1b" not in got.error
