"""Every program on docs/extending.md is a file that its command names, and each command trains."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, commands, run
from tests.pretrain.runs import write_corpus

PAGE = "docs/extending.md"
SMALLER = (
    "model.vocab_size=97 model.hidden_size=32 model.intermediate_size=48 model.num_hidden_layers=1 data.tokenizer=null"
    " model.num_attention_heads=2 model.max_position_embeddings=16 data.seq_length=16 data.train=corpus/train"
    " data.validation=null evaluation.interval=0 train.steps=4 train.global_batch_size=4 train.micro_batch_size=4"
    " optimizer.warmup_steps=1 sparsity.update_interval=2 sparsity.warmup_steps=1 sparsity.stop_fraction=1.0"
    " sparsity.block=[1,1] train.output_dir=run"
)
"""What a test can afford."""

SAID = {
    "own_momentum": "momentum in ZeRO-2",
    "own_compute": "products by rows",
    "own_callback": "SmetAdamW in ZeRO-2",
}


def test_every_program_has_its_command() -> None:
    names = [program.splitlines()[0].removeprefix("# ").removesuffix(".py") for program in blocks(PAGE, "python")]
    assert names == list(SAID) and len(commands(PAGE)) == len(names)


@pytest.mark.parametrize("name", SAID)
def test_its_command_trains(name: str, tmp_path: Path) -> None:
    for program in blocks(PAGE, "python"):
        (tmp_path / program.splitlines()[0].removeprefix("# ")).write_text(program)
    (command,) = [command for command in commands(PAGE) if f"{name}:" in command]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus" / "train", tokens=4000)
    screen = run([*shlex.split(command), *SMALLER.split()], tmp_path, PYTHONPATH=str(ROOT))
    assert SAID[name] in screen, screen
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4 and records[-1]["loss"] < records[0]["loss"] + 0.1
    if name == "own_callback":
        assert [record.get("largest_weight") is not None for record in records] == [False, True, False, True]
