"""A save changes nothing but the disk: not the losses, not the checkpoints that are to be kept."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.save import Saver
from pretrain.checkpoint.vectors import LogicalVector
from pretrain.layout import Layout
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (3, "bf16")])
def test_saving_at_every_step_changes_no_loss(tmp_path: Path, stage: int, precision: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", tokens=5000)
    jobs = []
    for name, interval, asynchronous in (("never", 0, True), ("background", 1, True), ("waiting", 1, False)):
        job = settings(corpus, tmp_path / name, parallel__zero_stage=stage, train__precision=precision, train__steps=9)
        job["checkpoint"] = {"interval": interval, "asynchronous": asynchronous, "keep_last": 0}
        jobs.append(job)
    for never, *saving in run_ranks(train_all, 2, jobs):
        for run in saving:
            assert {**run, "screen": ""} == {**never, "screen": ""}
    for name, steps in (("never", [9]), ("background", list(range(1, 10))), ("waiting", list(range(1, 10)))):
        found = folders.published(tmp_path / name / "checkpoints")
        assert [folders.step_of(path) for path in found] == steps
        assert all(folders.damage(path, folders.read_manifest(path)) == [] for path in found)
        manifest = folders.read_manifest(found[-1])
        sizes = {"world_size": 2, "data": 2, "tensor": 1, "pipeline": 1, "zero_stage": stage}
        assert manifest["layout"] == sizes and manifest["config"]["train"]["precision"] == precision
    rows = [json.loads(line) for line in (tmp_path / "background" / "metrics.jsonl").read_text().splitlines()]
    blocked = [row["checkpoint_seconds"] for row in rows if "checkpoint_seconds" in row]
    assert len(blocked) == 8 and min(blocked) > 0  # the time that each save held the step up, the last one aside


class SlowSaver(Saver):
    """Takes a second to write, and notes when."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.spans: list[tuple[float, float]] = []

    def _write(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        time.sleep(1.0)
        super()._write(*arguments)
        self.spans.append((begin, time.perf_counter()))


def save_slowly(root: Path) -> dict[str, Any]:
    """Three saves in a row, while what is saved goes on changing. Runs in a rank of its own."""
    layout = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    saver, main = SlowSaver(root, layout, 0, 0), threading.current_thread()
    live, state = torch.zeros(5), {"config": {}, "births": [0]}
    blocked = []
    for step in (1, 2, 3):
        live.fill_(step)
        state["births"] = births = [step]
        saver.save(step, {"weight": LogicalVector(live, 0, 5)}, state, wait=False)
        blocked.append(saver.seconds_blocked)
        live.fill_(-1)  # training goes on
        births[0] = -1
    saver.finish()
    saver.poll()
    assert threading.current_thread() is main
    return {"spans": saver.spans, "blocked": blocked}


def test_saves_are_of_their_moment_and_never_overlap(tmp_path: Path) -> None:
    from tests.tools.checkpoints.models import read_vectors

    (tmp_path / ".tmp-step-00000077").mkdir()  # of a killed run
    (tmp_path / ".tmp-step-00000077" / "big").write_bytes(bytes(1000))
    [done] = run_ranks(save_slowly, 1, tmp_path)
    first, second, third = done["spans"]
    assert first[1] <= second[0] and second[1] <= third[0]
    assert done["blocked"][0] < 0.9 and min(done["blocked"][1:]) > 0.9  # the second waits for the first
    for step in (1, 2, 3):
        folder = folders.step_folder(tmp_path, step)
        assert torch.equal(read_vectors(folder)["weight"], torch.full((5,), float(step)))
        assert json.loads((folder / folders.STATE).read_text())["births"] == [step]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *(f"step-0000000{n}" for n in (1, 2, 3))]


def published(root: Path, *steps: int) -> list[Path]:
    """Folders as if published."""
    for step in steps:
        folder = folders.temporary_folder(root, step)
        folders.make_empty(folder)
        (folder / folders.STATE).write_text(str(step))
        folders.publish(folder, folders.step_folder(root, step), {"step": step, "files": {}})
    return [folders.step_folder(root, step) for step in steps]


def steps_in(root: Path) -> list[int]:
    return [folders.step_of(path) for path in folders.published(root)]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (0, 0, [2, 4, 6, 8, 10]),
        (1, 0, [10]),
        (2, 0, [8, 10]),
        (5, 0, [2, 4, 6, 8, 10]),
        (9, 0, [2, 4, 6, 8, 10]),
        (1, 4, [4, 8, 10]),
        (2, 3, [6, 8, 10]),
    ],
)
def test_retention(tmp_path: Path, keep_last: int, keep_every: int, left: list[int]) -> None:
    *_, newest = published(tmp_path, 2, 4, 6, 8, 10)
    gone = folders.retire(newest, keep_last, keep_every)
    assert steps_in(tmp_path) == left
    assert sorted([folders.step_of(path) for path in gone] + left) == [2, 4, 6, 8, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *(f"step-{step:08d}" for step in left)]


def test_the_newest_whole_one_is_never_deleted(tmp_path: Path) -> None:
    """A run that fell back from damaged checkpoints writes older steps than theirs: those are what it needs."""
    _, damaged, worse = published(tmp_path, 6, 8, 10)
    (damaged / folders.STATE).unlink()
    (worse / folders.MANIFEST).unlink()
    [newest] = published(tmp_path, 7)
    folders.retire(newest, keep_last=1, keep_every=0)
    assert steps_in(tmp_path) == [7, 8, 10]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    [again] = published(tmp_path, 8)  # takes the damaged one's place
    assert (again / folders.STATE).is_file()
    folders.retire(again, keep_last=1, keep_every=0)
    assert steps_in(tmp_path) == [8, 10]


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    published(tmp_path, 2)
    for name in (".tmp-step-00000004", ".old-step-00000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / ".latest.tmp").write_text("step-")
    (tmp_path / ".notes").write_text("mine")
    folders.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "latest", "step-00000002"]
