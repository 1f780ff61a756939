"""Every command and program in README.md runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from smet import Remedies, sparse_layers
from tests.pages import ROOT, blocks, commands, run

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


def test_the_two_commands_come_first() -> None:
    assert commands("README.md")[:2] == ["bash launch/quickstart.sh", "bash tests/run.sh"]
    for command, where in ELSEWHERE.items():
        assert not where or command.split()[1] in (ROOT / where).read_text() or Path(command.split()[1]).exists()


def test_the_corpus_commands_run(tmp_path: Path) -> None:
    text = tmp_path / "my_text"
    text.mkdir()
    words = ["sparse", "weights", "are", "pruned", "and", "grown", "while", "it", "trains"]
    for part in range(2):
        lines = [" ".join(words[i % 9 :] + words[: (i * part) % 9]) + f" {i}" for i in range(400)]
        (text / f"{part}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    own = [command for command in commands("README.md") if command not in ELSEWHERE]
    assert len(own) == 4, "a new command needs its place in this test"
    for command in own:
        for long, short in SMALLER.items():
            command = command.replace(long, short)
        run(shlex.split(command), tmp_path, PYTHONPATH=str(ROOT))
    assert (tmp_path / "runs" / "mine" / "run.png").stat().st_size > 10_000


def test_the_program_trains_with_the_settings_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("README.md", "python")
    assert len(program.splitlines()) <= 13
    assert sum("smet" in line for line in program.splitlines()) <= 6, "lines beyond those of any loop"
    scope: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), scope)
    model, optimizer, run = scope["model"], scope["optimizer"], scope["run"]
    assert optimizer.ages.remedies == Remedies("local", 10, "regrown")
    assert [round(layer.density, 4) for layer in sparse_layers(model).values()] == [0.25, 0.25]
    factors = {group["name"]: group["lr_factor"] for group in optimizer.param_groups}
    assert factors == {"vectors": 1.0, "sparse-0.25": 2.0}
    assert (optimizer.steps_done, run.updates_done, run.last_report.step) == (100, 3, 60)
    assert optimizer.ages.births[:4] == [0, 20, 40, 60]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_number_of_when_it_pays_is_on_a_page_behind_it() -> None:
    section = README.partition("## When it pays")[2].partition("\n## ")[0]
    items = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
    assert len(items) >= 6
    for item in items:
        pages = re.findall(r"\]\((docs/[\w-]+\.md)\)", item)
        behind = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
        numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+|,\d{3})", item)
        assert numbers, item
        for number in numbers:
            found = re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", behind)
            assert found, f"{number} is on none of {pages}:\n{item}"
