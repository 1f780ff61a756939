"""Every command of docs/inference.md, on a small run in an empty folder; its options and keys exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from pretrain.config import load_config
from tests.pages import ROOT, commands
from tests.tools.inference.conftest import Trained
from tests.tools.inference.runs import quietly
from tools import evaluate, generate
from tools.__main__ import main as smet
from tools.export_hf import main as export

PAGE = "docs/inference.md"


def test_every_command_works(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(trained.folder / "fp32-zero2")
    data = tmp_path / "data" / "quickstart"
    data.mkdir(parents=True)
    for path in Path(trained.corpus).parent.glob("text_validation.*"):
        (data / path.name.replace("text", "python")).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    quietly(export, "runs/quickstart", "exported/quickstart")
    assert len(commands(PAGE)) == 5
    for command in commands(PAGE):
        words = shlex.split(command)
        assert words[0] == "smet" and quietly(smet, *words[1:]), command


def test_every_option_and_key_the_page_names_exists() -> None:
    text = (ROOT / PAGE).read_text()
    parsers: list[argparse.ArgumentParser] = [generate.build_parser(), evaluate.build_parser()]
    helps = "".join(parser.format_help() for parser in parsers) + "--limit --batch_size"
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)):
        assert option in helps, option
    config = load_config(ROOT / "configs" / "quickstart.yaml").to_dict()
    named = set(re.findall(r"\b(evaluation|data)\.([a-z_]+)\b", text))
    assert len(named) >= 5
    for section, key in named:
        assert key in config[section], f"{section}.{key}"
