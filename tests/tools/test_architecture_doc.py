"""docs/architecture.md describes the house as it is; each of its recipes is carried out in a copy of the project."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pages import ROOT, commands, run
from tests.pretrain.runs import write_corpus
from tests.test_architecture import FLOORS
from tests.tools.texts import make_documents

PAGE = "docs/architecture.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
COPIED = ("smet", "pretrain", "launch", "tools", "configs", "tests", "pyproject.toml")
SMALLER = (
    "model.vocab_size=97 model.hidden_size=32 model.intermediate_size=48 model.num_hidden_layers=1 data.tokenizer=null"
    " model.num_attention_heads=2 model.max_position_embeddings=16 data.seq_length=16 data.validation=null"
    " evaluation.interval=0 train.steps=6 train.global_batch_size=4 train.micro_batch_size=4 sparsity.block=[1,1]"
    " optimizer.warmup_steps=1 sparsity.update_interval=2 sparsity.warmup_steps=1 sparsity.stop_fraction=1.0"
    " train.output_dir=runs/all sparsity.prune_start=0.3"
)
"""What a test can afford."""


def fenced() -> list[tuple[str, str, list[str]]]:
    """(language, file that its first line names, other lines) of each block, in the order of the page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    blocks = []
    for language, text in found:
        first, *rest = text.splitlines()
        blocks.append(
            (language, first.removeprefix("# "), rest) if first.startswith("# ") else (language, "", [first, *rest])
        )
    return blocks


def apply(diff: list[str], path: Path) -> None:
    """Lines with ``-`` are replaced by the ``+`` lines behind them; those that begin with a blank get them behind."""
    text = path.read_text(encoding="utf-8")
    for hunk in re.findall(
        r"((?:^[- ].*\n)+)((?:^\+.*\n)+)", "".join(f"{line}\n" for line in diff), flags=re.MULTILINE
    ):
        old, new = ("".join(f"{line[1:]}\n" for line in part.splitlines()) for part in hunk)
        old = old.removesuffix("\n")
        assert text.count(old) == 1, f"{path}: the page changes {old!r}, which is there {text.count(old)} times"
        text = text.replace(
            old, new.removesuffix("\n") if hunk[0].startswith("-") else f"{old}\n{new}".removesuffix("\n")
        )
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with every addition of the page, and what its commands read."""
    folder = tmp_path_factory.mktemp("house")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(
            ROOT / name,
            folder / name,
            **({"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}),
        )
    for language, name, lines in fenced():
        if language == "diff":
            apply(lines, folder / name)
        elif language in ("python", "yaml"):
            assert not (folder / name).exists(), f"{name} is there already"
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        elif language == "bash":
            for line in lines:
                if not line.startswith("python "):
                    subprocess.run(line, shell=True, cwd=folder, check=True)
    (folder / "data" / "quickstart").mkdir(parents=True)
    write_corpus(folder / "data" / "quickstart" / "python_train", tokens=4000)
    return folder


def command(beginning: str) -> list[list[str]]:
    return [shlex.split(line) for line in commands(PAGE) if line.startswith(beginning)]


def here(house: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(house)}


def test_every_recipe_is_looked_at_below() -> None:
    assert sum(line.startswith("### ") for line in TEXT.splitlines()) == 9
    assert {line.split()[2] for line in commands(PAGE) if line.startswith("python ")} == {
        "pretrain", "tools.preprocess", "launch", "tools",
    }  # fmt: skip


def test_the_additions_train_together(house: Path) -> None:
    given = [part for one in command("python -m pretrain configs/quickstart.yaml") for part in one[4:]]
    screen = run(
        [sys.executable, "-m", "pretrain", "configs/quickstart.yaml", *given, *SMALLER.split()], house, **here(house)
    )
    assert "momentum in ZeRO-2" in screen and "products by rows" in screen, screen
    saved = yaml.safe_load((house / "runs" / "all" / "config.yaml").read_text())
    chosen = {key: saved["sparsity"][key] for key in ("prune", "growth", "prune_schedule", "mask_init", "compute")}
    assert chosen == {
        "prune": "still", "growth": "spread", "prune_schedule": "square", "mask_init": "front", "compute": "rows",
    }  # fmt: skip
    assert saved["logging"]["weights"] is True and saved["optimizer"]["name"] == "momentum"
    records = [json.loads(line) for line in (house / "runs" / "all" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 6 and all(record["largest_weight"] > 0 for record in records)
    updates = [json.loads(line) for line in (house / "runs" / "all" / "topology.jsonl").read_text().splitlines()]
    assert [update["step"] for update in updates] == [2, 4, 6] and updates[0]["pruned"] > 0
    fractions = [update["fraction"] for update in updates]
    start, end = 0.3, saved["sparsity"]["prune_end"]
    assert fractions == pytest.approx([start + (end - start) * (step / 6) ** 2 for step in (2, 4, 6)])


def test_the_family_trains(house: Path) -> None:
    (words,) = command("python -m pretrain tiny.yaml")
    screen = run([sys.executable, *words[1:]], house, **here(house))
    assert "6 steps" in screen or "step 6" in screen, screen
    assert yaml.safe_load((house / "runs" / "tiny" / "config.yaml").read_text())["model"]["family"] == "tiny"


def test_the_format_is_read(house: Path, model: str) -> None:
    documents = make_documents(30, seed=2)
    text = "".join('"' + document.replace('"', '""') + '"\n' for document in ["text", *documents])
    (house / "texts.csv").write_text(text, encoding="utf-8")
    (house / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    shutil.copy(model, house / "data" / "quickstart" / "tokenizer.model")
    (words,) = command("python -m tools.preprocess")
    run([sys.executable, *words[1:]], house, **here(house))
    again = [word.replace("texts.csv", "texts.jsonl").replace("data/texts", "data/same") for word in words[1:]]
    run([sys.executable, *again], house, **here(house))
    assert (house / "data" / "texts.bin").read_bytes() == (house / "data" / "same.bin").read_bytes() != b""


def test_the_launcher_says_how_it_would_start(house: Path) -> None:
    (house / "hostfile").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    (words,) = command("python -m launch")
    said = run([sys.executable, *words[1:]], house, **here(house))
    assert "--launcher mpich" in said and "worker-2 slots=1" in said and "configs/quickstart.yaml" in said


def test_the_subcommand_answers(house: Path) -> None:
    (words,) = command("python -m tools tokens")
    said = run([sys.executable, *words[1:]], house, **here(house))
    assert said == f"{4000:,} tokens\n"
    assert "  tokens " in run([sys.executable, "-m", "tools", "--help"], house, **here(house))


def test_the_house_still_stands(house: Path) -> None:
    """No addition brings a circle, an import from a higher floor, or a file that is too long."""
    run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_architecture.py"],
        house,
        **here(house),
    )


def test_floors_and_rooms_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| ([^|`]+) \| (`.+`) \|$", TEXT, flags=re.MULTILINE)
    told = {floor: tuple(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows if floor in FLOORS}
    assert told == FLOORS
    named = set(re.findall(r"`((?:smet|pretrain|launch|tools|tests)/[\w./]*)`", TEXT))
    assert len(named) > 10
    additions = {name for _, name, _ in fenced()}
    assert [name for name in named if not (ROOT / name).exists() and name not in additions] == []
    section = TEXT.split("## `smet`")[1].split("\n## ")[0]
    inside = re.findall(r"`(\w+\.py|\w+/)`", section)
    assert len(inside) > 15 and [name for name in inside if not (ROOT / "smet" / name).exists()] == []


@pytest.mark.parametrize("page", [PAGE, "docs/words.md", "CONTRIBUTING.md"])
def test_links_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[\w-]+)?\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_commands_of_contributing_are_those_that_have_to_pass() -> None:
    """What lints and tests is what CI runs; the two scripts are started by other tests."""
    ci = (ROOT / ".ci" / "run").read_text()
    for line in commands("CONTRIBUTING.md"):
        words = line.split()
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file() and words[1] in ci
            assert all((ROOT / word).exists() for word in words[2:] if not word.startswith("-"))
        else:
            assert line in ci.splitlines()
