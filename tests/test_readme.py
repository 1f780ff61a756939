"""Every command and program in README.md runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

ELSEWHERE = {
    "bash launch/quickstart.sh": "tests/launch/test_quickstart.py",
    "bash tests/run.sh": "tests/launch/test_quickstart.py",
    "source .venv/bin/activate": "",
}
"""Commands that other tests run, or that only set up a shell."""

SMALLER = {
    "--vocab-size 32000": "--vocab-size 352 --pad-to-multiple 1",
    "configs/60m.yaml": f"{ROOT}/configs/60m.yaml model.vocab_size=352 model.hidden_size=32 model.intermediate_size=48 "
    "model.num_hidden_layers=1 model.num_attention_heads=2 model.num_key_value_heads=2 data.seq_length=16 "
    "model.head_dim=16 model.max_position_embeddings=16 optimizer.warmup_steps=1 train.steps=3 "
    "train.global_batch_size=4 train.micro_batch_size=4 evaluation.samples=4 evaluation.interval=0",
}
"""What a test can afford: a vocabulary that little text has, and a tiny model."""


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> list[str]:
    """Every line of the shell blocks."""
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_the_two_commands_come_first() -> None:
    assert commands()[:2] == ["bash launch/quickstart.sh", "bash tests/run.sh"]
    for command, where in ELSEWHERE.items():
        assert not where or command.split()[1] in (ROOT / where).read_text() or Path(command.split()[1]).exists()


def test_the_corpus_commands_run(tmp_path: Path) -> None:
    text = tmp_path / "my_text"
    text.mkdir()
    words = ["sparse", "weights", "are", "pruned", "and", "grown", "while", "it", "trains"]
    for part in range(2):
        lines = [" ".join(words[i % 9 :] + words[: (i * part) % 9]) + f" {i}" for i in range(400)]
        (text / f"{part}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    own = [command for command in commands() if command not in ELSEWHERE]
    assert len(own) == 4, "a new command needs its place in this test"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}
    for command in own:
        for long, short in SMALLER.items():
            command = command.replace(long, short)
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs" / "mine" / "run.png").stat().st_size > 10_000


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    assert len(program.splitlines()) <= 17
    scope: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), scope)
    assert scope["topology"].updates_done == 3  # type: ignore[attr-defined]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
