"""``~`` is the home folder in every path of every run file, option and tool."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from launch.arguments import run_parser, status_parser
from pretrain.config import load_config
from pretrain.paths import expanded, path_argument, path_text, prefix_text, why_no_file
from tests.pretrain.config.test_load import RUN, load, problems_of, write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_every_path_of_a_run_file(tmp_path: Path, home: Path) -> None:
    write(home, "model.yaml", {"model": RUN["model"]})
    run: dict[str, Any] = {key: value for key, value in RUN.items() if key != "model"}
    run["base"] = "~/model.yaml"
    run["data"] = {"train": "~/a", "validation": [{"path": "~/b"}], "tokenizer": "~/t.model", "seq_length": 256}
    run["checkpoint"] = {"resume": "~/step-00000001"}
    run["train"] = {**RUN["train"], "output_dir": "~/runs/x"}
    run["parallel"] = {"zero_stage": 3}
    run["deepspeed"] = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "~/nvme"}}}
    write(home, "run.yaml", run)
    config = load_config("~/run.yaml")
    assert config.data.train[0].path == f"{home}/a" and config.data.validation[0].path == f"{home}/b"
    assert config.data.tokenizer == f"{home}/t.model" and config.checkpoint.resume == f"{home}/step-00000001"
    assert config.train.output_dir == f"{home}/runs/x"
    assert config.deepspeed["zero_optimization"]["offload_param"]["nvme_path"] == f"{home}/nvme"
    assert config.model.vocab_size == 4096


def test_every_path_of_an_override(tmp_path: Path, home: Path) -> None:
    stages = "data.curriculum=[{until_tokens: 5e3, blend: ~/a}, {blend: [{path: ~/b}]}]"
    config = load(tmp_path, "train.output_dir=~/x", stages, "data.tokenizer=~/t.model", "checkpoint.resume=~/c")
    assert config.train.output_dir == f"{home}/x" and config.data.tokenizer == f"{home}/t.model"
    assert [stage.blend[0].path for stage in config.data.curriculum] == [f"{home}/a", f"{home}/b"]
    assert config.checkpoint.resume == f"{home}/c"
    assert load(tmp_path, "train.output_dir=a~b").train.output_dir == "a~b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.output_dir=~nobody-of-that-name/x",
            "train.output_dir is '~nobody-of-that-name/x', expected a path, but",
        ),
        (
            "train.output_dir=$SCRATCH/x",
            "train.output_dir is '$SCRATCH/x', expected a path without variables: $SCRATCH",
        ),
        ("data.train=${DATA}/x", "data.train[0].path is '${DATA}/x', expected a path without variables"),
        ("data.tokenizer=/a/$USER.model", "data.tokenizer is '/a/$USER.model', expected a path without variables"),
        (
            "deepspeed.zero_optimization.offload_param.nvme_path=$TMP",
            "deepspeed.zero_optimization.offload_param.nvme_p",
        ),
    ],
)
def test_what_cannot_be_filled_in_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    found = problems_of(tmp_path, override)
    assert len(found) == 1 and found[0].startswith(expected), found


TOOLS = {
    "tools.preprocess": ["build_parser", "tokenizer", "output", "input", "dataset"],
    "tools.train_tokenizer": ["build_parser", "output", "input", "dataset"],
    "tools.export_hf": ["build_parser", "checkpoint", "out", "tokenizer"],
    "tools.import_hf": ["build_parser", "model", "out"],
    "tools.inspect_checkpoint": ["build_parser", "checkpoint"],
    "tools.ablate.__main__": ["parser", "matrix", "out"],
}


@pytest.mark.parametrize("module", TOOLS)
def test_every_path_of_every_tool(module: str) -> None:
    name, *options = TOOLS[module]
    parser: argparse.ArgumentParser = getattr(importlib.import_module(module), name)()
    found = {action.dest: action.type for action in parser._actions}
    assert {
        option: found[option] for option in options if found[option] not in (path_text, path_argument, prefix_text)
    } == {}


def test_every_path_of_the_corpus_tools_commands_and_of_launch(home: Path) -> None:
    from tools.dataset import build_parser

    parse = build_parser().parse_args
    assert parse(["verify", "~/a", "~/b"]).prefixes == [f"{home}/a", f"{home}/b"]
    assert parse(["merge", "~/a", "--output=~/b"]).output == f"{home}/b"
    assert parse(["split", "~/a", "--output=~/b"]).input == f"{home}/a"
    assert parse(["inspect", "~/a", "--tokenizer=~/t"]).tokenizer == f"{home}/t"
    assert parse(["bench", "~/a", "--tokenizer=~/t"]).input == f"{home}/a"
    launched = run_parser().parse_args(["~/run.yaml", "--hostfile=~/hosts", "--ssh-args=-F ~/cfg -i a~/b"])
    assert (launched.config, launched.hostfile) == (f"{home}/run.yaml", f"{home}/hosts")
    assert launched.ssh_args == f"-F {home}/cfg -i a~/b"
    assert status_parser().parse_args(["~/run"]).run == f"{home}/run"


def test_no_option_that_names_a_file_is_left_out() -> None:
    """Tools give ``Path`` as a type nowhere: it would take ``~`` as a name."""
    root = Path(__file__).parents[3]
    sources = [path for folder in ("tools", "launch", "pretrain") for path in (root / folder).rglob("*.py")]
    assert [path for path in sources if "type=Path" in path.read_text(encoding="utf-8")] == []


def test_a_tool_says_in_its_usage_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        status_parser().parse_args(["$RUNS/x"])
    assert left.value.code == 2
    assert "argument run: is '$RUNS/x', expected a path without variables: $RUNS is not" in capsys.readouterr().err


def test_without_a_home_the_password_file_is_asked() -> None:
    with mock.patch.dict("os.environ", clear=True):
        assert expanded("~/x") != "~/x"


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_a_variable_of_the_shell_that_is_not_set_names_no_path(text: str) -> None:
    """``--input "$TEXT"`` would read the whole disk otherwise, and ``--output "$OUT"`` write a file named .bin."""
    for kind in (path_text, path_argument, prefix_text):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a path; is a variable of the shell not set"):
            kind(text)


@pytest.mark.parametrize(
    ("text", "better"), [("data/", "data/NAME"), (".", "./NAME"), ("a/..", "a/NAME"), ("/", "./NAME")]
)
def test_a_folder_is_no_prefix(text: str, better: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a folder, expected the beginning of file names") as caught:
        prefix_text(text)
    assert str(caught.value).endswith(better)


def test_what_is_there_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    found = [why_no_file(path) for path in (tmp_path, "/dev/null", tmp_path / "link", tmp_path / "nothing")]
    assert found == ["is a folder", "is no plain file", "is a link to nothing", "does not exist"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x/" * 3000, "'xXx...', expected a path of at most 4,000 bytes, not 6,000"),
        ("a/" + "y" * 300, "expected names of at most 240 bytes in a path, not 300"),
        ("é" * 150, "expected names of at most 240 bytes in a path, not 300"),
    ],
)
def test_paths_that_the_system_has_no_room_for_are_refused_where_they_are_given(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        path_argument(text)
    assert told.replace("xXx", "x/" * 20) in str(caught.value) and len(str(caught.value)) < 200
    assert path_argument("x/" * 1900) and path_text("y" * 240)
    assert any(told[-30:] in line for line in problems_of(tmp_path, f"train.output_dir={text}"))


def test_half_characters_are_no_text(tmp_path: Path) -> None:
    told = "evaluation.prompts[1] is '\\udcff', expected text; \\ud800 to \\udfff are no characters"
    assert problems_of(tmp_path, r'evaluation.prompts=["a", "\udcff"]', "data.tokenizer=t") == [told]
