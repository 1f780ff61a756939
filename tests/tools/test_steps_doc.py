"""Every command of docs/first-steps.md and docs/recipes.md, in order, in one process and on a tiny model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.run_folder.writer import OWN
from smet import PRESETS
from tests.distributed import run_ranks
from tests.pages import ROOT, blocks, commands
from tests.tools.quickstart import lay_quickstart

STEPS, RECIPES = "docs/first-steps.md", "docs/recipes.md"

ELSEWHERE = {"bash launch/quickstart.sh": "tests/launch/test_quickstart.py", "source .venv/bin/activate": ""}
"""Commands that other tests run, or that only set up a shell."""

SMALLER = (
    " train.steps=4 train.global_batch_size=4 train.micro_batch_size=4 train.device=cpu evaluation.samples=4"
    " optimizer.warmup_steps=0 data.seq_length=32 model.vocab_size=512 model.hidden_size=64 model.intermediate_size=64"
    " model.num_hidden_layers=1 model.num_attention_heads=2 sparsity.update_interval=2 sparsity.warmup_steps=1"
)
"""Added to a training command: the same run, but a second long."""

FIRST = "smet train configs/quickstart.yaml train.stop_at=3"
"""Stands for the quickstart, whose run the pages look at."""


def carry_out(folder: Path, lines: list[str]) -> list[tuple[str, int, str]]:
    """(command, exit code, screen) of each line, one after another in this process."""
    from tools.__main__ import main

    os.chdir(folder)
    told = []
    for line in lines:
        training = line.startswith("smet train configs/quickstart.yaml")
        words = shlex.split(line + SMALLER if training else line)
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            code = main(words[1:]) if words[0] == "smet" else subprocess.run(words, check=False).returncode
        told.append((line, code, screen.getvalue()))
        if code:
            break
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Path, dict[str, str]]:
    """The folder after all commands of both pages, and what each of them printed."""
    folder = tmp_path_factory.mktemp("checkout")
    lay_quickstart(folder, model)
    (folder / "hostfile").write_text("".join(f"worker-{number} slots=8\n" for number in range(1, 9)))
    lines = [line for page in (STEPS, RECIPES) for line in commands(page) if line not in ELSEWHERE]
    alone = [line for line in dict.fromkeys(lines) if line.startswith("smet train") and "--dry-run" in line]
    (found,) = run_ranks(carry_out, 1, folder, [FIRST, *(line for line in dict.fromkeys(lines) if line not in alone)])
    before = os.getcwd()
    try:  # a dry run makes a process group of its own
        found = [*carry_out(folder, alone), *found]
    finally:
        os.chdir(before)
    for line, code, screen in found:
        assert code == 0, f"{line}\n{screen}"
    return folder, {line: screen for line, _, screen in found}


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_runs_of_the_pages_are_trained(told: tuple[Path, dict[str, str]]) -> None:
    folder, _ = told
    for name in ("dense", "static", "single", "imported"):
        assert steps(folder / "runs" / name) == [1, 2, 3, 4], name
    assert steps(folder / "moved") == [1, 2, 3, 4] and steps(folder / "runs" / "quickstart") == [1, 2, 3]
    assert (folder / "runs" / "quickstart" / "run.png").stat().st_size > 10_000
    assert (folder / "hf" / "dense" / "model.safetensors").is_file()


def test_the_commands_say_what_the_pages_say_of_them(told: tuple[Path, dict[str, str]]) -> None:
    _, screens = told
    saying = {
        "smet status runs/quickstart": "3",
        "smet inspect runs/quickstart": "step 3",
        "smet inspect moved": "step 3",
        "smet memory runs/quickstart runs/dense": "| 1.0 |",
        "smet train configs/quickstart.yaml sparsity.density=0.5 train.output_dir=runs/half --dry-run": "rank 0",
    }
    for command, part in saying.items():
        assert part in screens[command], f"{command}\n{screens[command]}"
    hosts = screens["smet launch configs/clusters/7b-64x80gb.yaml --hostfile hostfile --nodes 4 --dry-run"]
    assert "worker-4" in hosts and "worker-5" not in hosts


def test_the_kept_screen_of_a_run_s_state_is_like_the_real_one(told: tuple[Path, dict[str, str]]) -> None:
    _, screens = told
    (kept,) = blocks(STEPS, "text")
    first, *lines = kept.splitlines()
    assert re.fullmatch(r"runs/quickstart: done, step [\d,]+ of [\d,]+ \(100.0%\)", first)
    labels = [line[:12].strip() for line in lines if line[0] != " "]
    real = screens["smet status runs/quickstart"].splitlines()
    sparsity = load_config(ROOT / "configs" / "quickstart.yaml").sparsity
    active = 200_704  # as the first lines of the quickstart count them
    most = max(sparsity.prune_start, sparsity.prune_end) * active
    (moved,) = re.findall(r"after step \d+: ([\d,]+) tiles moved", kept)
    assert 0 < int(moved.replace(",", "")) * sparsity.block[0] * sparsity.block[1] <= most
    assert len(labels) == 6 and [label for label in labels if not any(line.startswith(label) for line in real)] == []


def test_commands_that_are_run_elsewhere_are_there() -> None:
    for command, where in ELSEWHERE.items():
        assert command in commands(STEPS)
        assert not where or Path(command.split()[1]).name in (ROOT / where).read_text(encoding="utf-8")


def test_the_run_folder_is_told_as_it_is() -> None:
    text = (ROOT / STEPS).read_text(encoding="utf-8")
    assert [name for name in OWN if f"| `{name}` |" not in text and f"| `{name}/` |" not in text] == []


def test_the_method_page_names_every_method() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert all(f"`{method}`" in text for method in PRESETS)
