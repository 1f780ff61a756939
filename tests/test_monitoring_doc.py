"""docs/monitoring.md: its commands train and write what the page says, its tables have what runs write."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pretrain.callbacks.base import ORDER
from pretrain.config.load import load_config
from pretrain.plan.devices import DEVICES
from pretrain.schedule import learning_rate
from pretrain.writers import WRITERS
from pretrain.writers.tags import TAGS, of_update
from smet.schedule import TopologySchedule
from smet.update import UpdateReport
from tests.pages import ROOT, blocks, commands, run
from tests.pretrain.runs import write_corpus
from tests.test_extending_doc import SMALLER

PAGE = "docs/monitoring.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("monitoring")
    (program,) = blocks(PAGE, "python")
    (made / program.splitlines()[0].removeprefix("# ")).write_text(program)
    (made / "configs").symlink_to(ROOT / "configs")
    (made / "corpus").mkdir()
    write_corpus(made / "corpus" / "train", tokens=4000)
    return made


def start(number: int, folder: Path) -> str:
    output = f"train.output_dir=run{number}"
    return run(
        [*shlex.split(commands(PAGE)[number]), *SMALLER.replace("train.output_dir=run", output).split()],
        folder, PYTHONPATH=str(ROOT), WANDB_MODE="offline", TRACKIO_DIR=str(folder / "trackio"),
    )  # fmt: skip


def test_the_writers_of_the_page_write(folder: Path) -> None:
    assert len(commands(PAGE)) == 2, "a new command needs its place in this test"
    screen = start(0, folder)
    for name in WRITERS:
        assert f"  writer     {name}: " in screen, screen
    assert list((folder / "run0" / "tensorboard").glob("events.*")) and list((folder / "trackio").glob("*.db"))
    assert list((folder / "run0" / "wandb").glob("offline-run-*/run-*.wandb"))
    record = json.loads((folder / "run0" / "metrics.jsonl").read_text().splitlines()[-1])
    told = {name for cell in re.findall(r"^\| (`.*?) \|", TEXT, re.M) for name in re.findall(r"`([^`]+)`", cell)}
    assert record.keys() <= told | {"step"} | {key for key in record if key.startswith("bytes_sent")}


def test_a_writer_of_one_s_own_writes(folder: Path) -> None:
    screen = start(1, folder)
    assert "writing to" not in screen
    rows = list(csv.reader((folder / "run1" / "table.csv").open()))
    assert [row[0] for row in rows] == ["1", "2", "3", "4"] and float(rows[1][2]) > 0


def test_the_settings_of_the_page_are_settings(tmp_path: Path) -> None:
    (part,) = blocks(PAGE, "yaml")
    file = tmp_path / "run.yaml"
    file.write_text(f"base: {ROOT}/configs/quickstart.yaml\n{part}")
    config = load_config(file)
    assert [writer.name for writer in config.logging.writers] == list(WRITERS)
    assert yaml.safe_load(part)["logging"]["writers"][0] == "tensorboard"


def test_the_page_names_every_device_and_group() -> None:
    for name in DEVICES:
        assert name.replace("-", " ").split(" ")[0] in TEXT or name.replace("-", " ") in TEXT, name
    report = UpdateReport(1, 1, 0.1)
    for tag in [*TAGS.values(), *of_update(report, 1.0)]:
        assert f"`{tag.split('/')[0]}/`" in TEXT, tag
    assert "writers" in ORDER


def test_the_kept_screen_is_of_the_quickstart_as_it_is_now() -> None:
    (screen,) = blocks(PAGE, "text")
    steps = int(re.search(r"^step 1/(\d+) ", screen, re.M)[1])
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["sparsity.block=[1,1]", f"train.steps={steps}"])
    at, moved = re.search(r"^step (\d+)/.*topology update 1: ([\d,]+) tiles moved", screen, re.M).groups()
    active = int(re.search(r"([\d,]+) of [\d,]+ sparse-layer weights", screen)[1].replace(",", ""))
    fraction = TopologySchedule(config.sparsity, steps).prune_fraction(int(at))
    assert int(moved.replace(",", "")) == pytest.approx(fraction * active, rel=0.01)
    rates = {int(step): float(lr) for step, lr in re.findall(r"^step (\d+)/\d+ .* lr (\S+)", screen, re.M)}
    assert rates == {step: float(f"{learning_rate(step - 1, config.optimizer, steps):.2e}") for step in rates}
