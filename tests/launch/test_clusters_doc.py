"""Every command of docs/clusters.md runs, or its dry run does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch import preflight
from launch.__main__ import main
from launch.arguments import run_parser
from launch.attempt import Watch
from launch.preflight import Finding
from launch.supervisor import Policy
from tests.launch.commands import write_run
from tests.pages import ROOT, commands

DOC = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
COMMANDS = commands("docs/clusters.md")


def test_all_ways_to_start_are_shown() -> None:
    text = "\n".join(COMMANDS)
    for part in ("--hostfile", "--mpi", "--slurm", "check", "status", "deepspeed --hostfile", "--env"):
        assert part in text
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "hostfile").write_text("".join(f"worker-{n} slots=8\n" for n in range(1, 9)))
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    write_run(run).rename(run / "config.yaml")
    words = shlex.split(command)
    if words[0] == "deepspeed":
        plain_deepspeed(words[1:])
        return
    assert words[0] == "smet" and words[1] in ("launch", "status")
    arguments = words[2:] if words[1] == "launch" else words[1:]
    if arguments[0] == "check":
        monkeypatch.setattr(preflight, "preflight", lambda wanted, remote: [Finding("port", "a", True, "free")])
    elif arguments[0] != "status":
        arguments.append("--dry-run")
    assert main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def plain_deepspeed(arguments: list[str]) -> None:
    """DeepSpeed understands it, and we understand what it hands on."""
    from deepspeed.launcher.runner import parse_args

    from pretrain.config import load_config

    parsed = parse_args(arguments)
    assert parsed.module and parsed.user_script == "pretrain"
    load_config(parsed.user_args[0], parsed.user_args[1:])


def test_the_numbers_of_the_page_are_those_of_the_program() -> None:
    options = run_parser().parse_args(["c"])
    for text in (
        f"within {preflight.FACTS_SECONDS:.0f} s",
        f"more than {preflight.CLOCK_SECONDS:.0f} s off",
        f"{options.margin} seconds (`--margin`)",
        f"from {Policy().back_off:.0f} s (`--back-off`) to {Policy().longest_wait / 60:.0f} minutes",
        f"After {Policy().max_restarts} attempts",
        f"{Watch().lost_after:.0f} s (`--lost-after`)",
        f"`--host-interval {Watch().host_interval:.0f}`",
        f"{Watch().patience:.0f} s (`--patience`)",
    ):
        assert text in re.sub(r"\s+", " ", DOC), text
    assert preflight.FACTS_SECONDS < preflight.TOTAL_SECONDS < 60
