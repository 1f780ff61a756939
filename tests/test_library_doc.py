"""Every program and command in docs/library.md runs, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import smet
from tests.pages import ROOT, blocks, commands

PAGE = "docs/library.md"


def test_the_programs_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    programs = [program for program in blocks(PAGE, "python") if not program.startswith("# train_")]
    assert len(programs) == 6
    for number, program in enumerate(programs):
        exec(compile(program, f"{PAGE}, program {number + 1}", "exec"), scope)
        if number == 1:
            assert (scope["optimizer"].steps_done, scope["run"].updates_done) == (100, 3)
        if number == 3:
            assert (scope["optimizer"].steps_done, scope["run"].updates_done) == (140, 3)
            assert scope["averaged"][0].density >= scope["model"][0].density
        if number == 4:
            assert (scope["optimizer"].steps_done, scope["run"].updates_done) == (60, 3)
    assert (scope["optimizer"].steps_done, scope["topology"].updates_done) == (100, 3)
    assert scope["optimizer"].ages.remedies.warmup_steps == 10
    assert type(scope["first"]) is torch.nn.Linear


def program_of(name: str) -> str:
    (program,) = [program for program in blocks(PAGE, "python") if program.startswith(f"# {name}")]
    return program


def run_on_two_ranks(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(program_of(name))
    (command,) = [command for command in commands(PAGE) if command.endswith(name)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *shlex.split(command)[1:]]
    done = subprocess.run(
        torchrun, cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_trainer_of_the_page_takes_few_lines_and_trains(tmp_path: Path) -> None:
    own = [line for line in program_of("train_trainer.py").splitlines() if re.search("smet", line, re.IGNORECASE)]
    assert len(own) <= 6
    run_on_two_ranks("train_trainer.py", tmp_path)
    state = json.loads((tmp_path / "out" / "checkpoint-20" / "trainer_state.json").read_text())
    assert [line["smet/update"] for line in state["log_history"] if "smet/update" in line] == [1, 2, 3]
    assert (tmp_path / "out" / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["train_ddp.py", "train_zero.py", "train_fsdp.py"])
def test_the_programs_for_two_ranks_run(name: str, tmp_path: Path) -> None:
    done = run_on_two_ranks(name, tmp_path)
    # Two processes share one pipe: their lines may run into each other.
    said = re.findall(r"rank \d: (\d) updates, masks ([0-9a-f]{32})", done.stdout)
    assert len(said) == 2 and said[0] == said[1] and said[0][0] == "3", done.stdout
    if name == "train_fsdp.py":
        model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(),
                                                          torch.nn.Linear(256, 64)) for _ in range(2)))  # fmt: skip
        smet.sparsify(model, density=0.25, quiet=True)
        model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert (tmp_path / "checkpoint" / ".metadata").is_file()
