"""``smet quickstart`` and launch/quickstart.sh: their steps with stand-ins for what they call, and once for real in a
fresh checkout."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import quickstart

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "launch" / "quickstart.sh"

# Notes each call; the numbers of GPUs and the exit code of the n-th training come from the environment.
PYTHON = """#!/bin/bash
echo "python $*" >>calls
case "$*" in
  *device_count*) echo "${FAKE_GPUS:-0}" ;;
  *train_tokenizer*) mkdir -p data/quickstart; touch data/quickstart/tokenizer.model ;;
  *preprocess*) touch data/quickstart/python_{train,validation}.{bin,idx} ;;
  *deepspeed*)
    echo "[2026-01-01 00:00:00,000] [INFO] [launch.py:300:main] chatter of the launcher"
    echo "[2026-01-01 00:00:00,000] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator to CPU."
    echo "step 1 of this program"
    exit $(cut -d' ' -f "$(grep -c deepspeed calls)" <<<"${FAKE_EXITS:-0 0}") ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a Python that only notes what it is called for."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trainings(folder: Path) -> list[list[str]]:
    calls = (folder / "calls").read_text().splitlines()
    return [line.split()[3:] for line in calls if "deepspeed" in line]


def test_two_processes_one_stop_one_resume(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main([]) == 0
    config = str(ROOT / "configs" / "quickstart.yaml")
    first, second = ([*words[:2], *words[4:]] for words in trainings(folder))
    common = ["--num_gpus", "2", "--module", "pretrain", config]
    assert (first, second) == ([*common, "train.stop_at=150"], [*common, "train.stop_at=0"])
    *_, plot, text = (folder / "calls").read_text().splitlines()
    assert plot == "python -m tools.plot_run runs/quickstart"
    assert text.startswith("python -m tools.generate runs/quickstart def __init__(self import ")
    screen = capfd.readouterr().out
    assert "step 1 of this program" in screen and "[2026" not in screen
    assert screen.splitlines()[-1].endswith(" watch runs/quickstart")


def test_what_is_there_is_used_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main([]) == quickstart.main([]) == 0
    assert "using data/quickstart/tokenizer.model" in capfd.readouterr().out
    calls = (folder / "calls").read_text()
    assert calls.count("train_tokenizer") == calls.count("preprocess") == 1


def test_overrides_reach_both_trainings_and_the_second_goes_to_the_end(folder: Path) -> None:
    given = ["train.steps=40", "train.output_dir=runs/other"]
    assert quickstart.main(given) == 0
    first, second = trainings(folder)
    assert first[-3:] == [*given, "train.stop_at=20"] and second[-3:] == [*given, "train.stop_at=0"]
    *_, plot, text = (folder / "calls").read_text().splitlines()
    assert plot == "python -m tools.plot_run runs/other" and text.startswith("python -m tools.generate runs/other ")
    assert quickstart.main([*given, "train.stop_at=8"]) == 0
    assert [words[-1] for words in trainings(folder)[2:]] == ["train.stop_at=8", "train.stop_at=0"]


@pytest.mark.parametrize(("gpus", "ranks"), [("0", "2"), ("1", "1"), ("2", "2"), ("8", "2")])
def test_ranks_follow_the_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, ranks: str) -> None:
    monkeypatch.setenv("FAKE_GPUS", gpus)
    assert quickstart.main([]) == 0
    assert [training[1] for training in trainings(folder)] == [ranks, ranks]


@pytest.mark.parametrize(("exits", "reached"), [("2 0", 1), ("0 2", 2)])
def test_a_training_that_fails_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], exits: str, reached: int
) -> None:
    monkeypatch.setenv("FAKE_EXITS", exits)
    assert quickstart.main([]) == 2
    assert len(trainings(folder)) == reached
    screen = capfd.readouterr().out
    assert "4/5" not in screen and "step 1 of this program" in screen


def test_a_mistake_is_refused_before_a_corpus_is_made(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["steps"]) == quickstart.main(["sparsity.densty=0.5", "train.steps=20"]) == 2
    first, *others = capfd.readouterr().err.splitlines()
    assert first == "error: override 'steps' is malformed, expected section.key=value, such as train.steps=100"
    assert "did you mean 'density'" in others[0] and "warmup_steps is 30, expected at most train.steps" in others[1]
    assert not (folder / "calls").exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script, with stand-ins for what it starts."""
    for name, text in (
        ("launch/quickstart.sh", SCRIPT.read_text()),
        ("launch/setup_env.sh", "#!/bin/bash\necho environment >>calls\n"),
        (".venv/bin/python", PYTHON),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def script(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", checkout / "launch" / "quickstart.sh", *arguments],
        env={**os.environ, **environment},
        cwd=checkout.parent,
        capture_output=True,
        text=True,
    )


def test_the_script_sets_up_and_goes_on_as_the_command(checkout: Path) -> None:
    assert script(checkout, "train.steps=2", "data.seed=1").returncode == 0
    calls = (checkout / "calls").read_text().splitlines()
    assert calls == ["environment", "python -m tools quickstart train.steps=2 data.seed=1"]


def test_the_script_refuses_what_is_no_override_before_it_sets_up(checkout: Path) -> None:
    refused = script(checkout, "--steps")
    assert refused.returncode == 2
    assert refused.stderr == ("error: '--steps' is no override, expected section.key=value, such as train.steps=100\n")
    assert not (checkout / "calls").exists()


def test_help_tells_the_usage_and_does_nothing(checkout: Path) -> None:
    told = script(checkout, "--help")
    assert told.returncode == 0
    assert "bash launch/quickstart.sh [key=value ...]" in told.stdout and "set -euo" not in told.stdout
    assert not (checkout / "calls").exists()


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("**/launch/*.sh")) + [ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"]
)
def test_shell_scripts_parse_and_stop_at_errors(file: Path) -> None:
    checked = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    text = file.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files as they are now, with this environment linked in."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to((ROOT / ".venv").resolve())
    return tmp_path


@pytest.mark.slow
def test_from_a_fresh_checkout_to_a_trained_model(clone: Path) -> None:
    overrides = [
        "train.steps=24",
        "train.stop_at=12",
        "sparsity.update_interval=5",
        "optimizer.warmup_steps=4",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "evaluation.interval=8",
        "evaluation.samples=6",
        "checkpoint.interval=5",
    ]
    done = script(clone, *overrides, QUICKSTART_TEXT=str(Path(asyncio.__file__).parent))
    assert done.returncode == 0, done.stdout + done.stderr
    screen = done.stdout
    for expected in (
        "== 2/5 training on",
        "resumed from runs/quickstart/checkpoints/step-00000012 after step 12",
        "24 steps, 3 topology updates, loss",
        "sparse layers hold",
        "plot: runs/quickstart/run.png",
        "== 5/5 what it writes\ndef __init__(self",
    ):
        assert expected in screen, screen
    (kept,) = re.findall(r"<!-- quickstart-output -->\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    labels = re.compile(r"^(?:  (\w+) {2,}|== (\d/5) )", re.MULTILINE)
    assert len(labels.findall(kept)) >= 18 and {*labels.findall(kept)} <= {*labels.findall(screen)}, screen
    share = re.search(r"dense AdamW would hold .* MB: ([\d.]+) %", screen)
    perplexity = re.search(r"validation perplexity ([\d.]+)", screen)
    assert share and float(share.group(1)) <= 28.0
    assert perplexity and 1.0 < float(perplexity.group(1)) < 4096.0, "better than a guess among 4096 pieces"
    assert "Traceback" not in screen + done.stderr and "error:" not in screen + done.stderr
    run = clone / "runs" / "quickstart"
    have = {path.name for path in run.iterdir()}
    assert {"config.yaml", "deepspeed.json", "metrics.jsonl", "topology.jsonl", "memory.json", "run.png"} <= have
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))
    assert (run / "checkpoints" / "latest").read_text() == "step-00000024\n"
