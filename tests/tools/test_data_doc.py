"""Every command and every Python example of docs/data.md, in order, on small data in an empty folder."""

from __future__ import annotations

import gzip
import json
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from pretrain.config import load_config
from tests.pages import ROOT, blocks, commands, link_checkout, run

PAGE = "docs/data.md"

ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    # What mpirun asks of root, and of a machine with fewer processors than ranks.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

SHORT = (
    " train.steps=2 train.global_batch_size=2 train.micro_batch_size=1 evaluation.samples=2 optimizer.warmup_steps=0"
    " model.num_hidden_layers=1"
)
"""Added to a training command: the same run, but seconds long."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page expects to find: the checkout, a JSONL file, sources, and C4 on a hub that is a local folder."""
    folder = tmp_path_factory.mktemp("checkout")
    link_checkout(folder)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
    records = [{"name": path.name, "text": path.read_text(encoding="utf-8")} for path in sources]
    lines = [json.dumps(record) + "\n" for record in records if record["text"].strip()]
    for name in ("data/c4", "allenai/c4/en", "src/test"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "mine.jsonl").write_text("".join(lines[:100]))
    for number in range(2):
        content = gzip.compress("".join(lines[60 + 10 * number : 90 + 10 * number]).encode())
        (folder / "data" / "c4" / f"c4-train.{number:05d}-of-01024.json.gz").write_bytes(content)
        (folder / "allenai" / "c4" / "en" / f"c4-train.{number:05d}-of-01024.json.gz").write_bytes(content)
    (folder / "allenai" / "c4" / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/c4-train.*.json.gz\n---\n"
    )
    (folder / "src" / "kept.py").write_text("kept = 1\n")
    (folder / "src" / "test" / "left_out.py").write_text("left_out = 1\n")
    return folder


def run_files() -> dict[str, str]:
    """The page's run files by the path in their first line."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks(PAGE, "yaml")}


@pytest.mark.slow
def test_every_command_and_example_works_in_order(checkout: Path) -> None:
    assert len(commands(PAGE)) >= 18
    environ = {**ENVIRON, "HF_HOME": str(checkout / "hf")}
    for path, content in run_files().items():
        (checkout / path).write_text(content)
    for command in commands(PAGE):
        run(["bash", "-c", command + (SHORT if "smet train " in command else "")], checkout, **environ)
    run([sys.executable, "-c", "\n".join(blocks(PAGE, "python"))], checkout, **environ)
    for name in ("mine", "blend", "curriculum", "apart"):
        assert (checkout / "runs" / name / "metrics.jsonl").read_text().count("\n") == 2
    # However the work was spread, the output is the same.
    bins = {(checkout / "data" / f"{name}.bin").read_bytes() for name in ("c4-mpi", "c4-array", "piped")}
    assert len(bins) == 1


def test_every_option_the_page_names_exists() -> None:
    from tools import dataset, preprocess, train_tokenizer

    text = (ROOT / PAGE).read_text()
    helps = preprocess.build_parser().format_help() + train_tokenizer.build_parser().format_help()
    subparsers = next(a for a in dataset.build_parser()._actions if a.dest == "command").choices
    helps += "".join(parser.format_help() for parser in subparsers.values())
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
        assert option in helps, option


def test_every_run_file_of_the_page_is_used_and_complete(checkout: Path) -> None:
    configs = {}
    for path, content in run_files().items():
        assert f"smet train {path}\n" in "\n".join(blocks(PAGE, "bash"))
        (checkout / path).write_text(content)
        configs[path] = load_config(checkout / path).data
    assert [source.weight for source in configs["data/blend.yaml"].train] == [0.7, 0.3]
    curriculum = configs["data/curriculum.yaml"]
    assert curriculum.train == ()
    assert [stage.until_tokens for stage in curriculum.curriculum] == [50_000, 1_000_000, None]
