"""Every command and every Python example of docs/checkpoints.md, in order, on a small run in an empty folder; after
them the command of docs/security.md."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

from pretrain.config import load_config
from tests.distributed import free_port
from tests.pages import ROOT, blocks, commands, run
from tests.tools.quickstart import lay_quickstart
from tools import export_hf, import_hf, inspect_checkpoint

PAGE = "docs/checkpoints.md"

SHORT = (
    " train.global_batch_size=4 train.micro_batch_size=1 train.device=cpu evaluation.samples=2"
    " evaluation.interval=0 optimizer.warmup_steps=0 checkpoint.interval=2 data.seq_length=32"
)
"""Added to a training command: the same run, but seconds long."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """What the page expects to find: the checkout, and the quickstart's corpus and tokenizer."""
    folder = tmp_path_factory.mktemp("checkout")
    lay_quickstart(folder, model)
    (folder / "imported.yaml").write_text(blocks(PAGE, "yaml")[0])
    return folder


def shortened(command: str) -> str:
    """The command on a run of 4 steps instead of 300, saved at 2 instead of 200; one that trains on takes 2 more."""
    steps = 6 if "train.steps=320" in command else 4
    command = command.replace("step-00000200", "step-00000002").replace("train.stop_at=100", "train.stop_at=2")
    command = command.replace("step-00000300", "step-00000004")
    command = command.replace("deepspeed ", f"deepspeed --master_port {free_port()} ")
    return command + (f" train.steps={steps}{SHORT}" if re.search(r"smet train |--module pretrain ", command) else "")


@pytest.mark.slow
def test_every_command_and_example_works_in_order(checkout: Path) -> None:
    assert len(commands(PAGE)) == 11
    for command in commands(PAGE):
        run(["bash", "-c", shortened(command)], checkout)
    run([sys.executable, "-c", "\n".join(blocks(PAGE, "python"))], checkout)
    for name, steps in (
        ("quickstart", [1, 2, 3, 4]),
        ("branch", [3, 4]),
        ("longer", [5, 6]),
        ("imported", [1, 2, 3, 4]),
    ):
        rows = (checkout / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == steps
    (look,) = commands("docs/security.md")
    assert "step 4" in run(["bash", "-c", look], checkout)


def test_every_option_the_page_names_exists() -> None:
    text = (ROOT / PAGE).read_text()
    parsers: list[argparse.ArgumentParser] = [
        tool.build_parser() for tool in (export_hf, import_hf, inspect_checkpoint)
    ]
    helps = "".join(parser.format_help() for parser in parsers) + "--num_gpus --module"
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)):
        assert option in helps, option


def test_every_key_the_page_names_exists() -> None:
    text = (ROOT / PAGE).read_text()
    config = load_config(ROOT / "configs" / "quickstart.yaml").to_dict()
    named = set(re.findall(r"\b(checkpoint|train|data|sparsity|parallel)\.([a-z_]+)\b", text))
    assert len(named) >= 10
    for section, key in named - {("train", "yaml"), ("checkpoint", "md")}:
        assert key in config[section], f"{section}.{key}"
