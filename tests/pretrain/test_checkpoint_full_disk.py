"""Saves that fail: every rank stops with one line, older checkpoints stay whole, and the run can be finished later."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.save import Saver
from tests.pretrain.attempts import write_run_file
from tests.pretrain.programs import Program
from tests.pretrain.runs import outcome, write_corpus

SETTINGS: dict[str, Any] = {"parallel__zero_stage": 2, "checkpoint__interval": 4, "evaluation__interval": 0}
STEPS = 14


def limit_files(rank: int, size: int) -> None:
    """No file of ``rank`` may grow beyond ``size`` bytes: saving fails as on a full disk, whoever runs the test."""
    genuine = Saver.save

    def save(*arguments: Any, **options: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        genuine(*arguments, **options)

    if os.environ["RANK"] == str(rank):
        Saver.save = save  # type: ignore[method-assign]


def see_space() -> None:
    """The disk seems to be large enough when a save begins, and is full later."""
    folders.free_bytes = lambda root: 1 << 50


def break_writer() -> None:
    """A fault of the program, on rank 1 alone, in the thread that writes."""
    if os.environ["RANK"] != "1":
        return

    def describe_own(*_: Any) -> Any:
        raise ValueError("the writer is broken")

    Saver._describe_own = describe_own  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train", tokens=5000)


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, corpus, folder / "run", codes=[0, 0])
    return outcome(folder / "run")


def start(folder: Path, corpus: str, run: Path, *overrides: str, codes: list[int], prepare: Any = ()) -> list[str]:
    """Run the program on two ranks; what it printed on stderr."""
    file = write_run_file(folder / "run.yaml", corpus, run, **SETTINGS)
    with Program(folder / "screen", 2, [file, *overrides], prepare) as program:
        assert program.wait(90) == codes, program.errors()
        return program.errors()


def require_old_ones_whole(run: Path, steps: list[int]) -> None:
    """Exactly the checkpoints of ``steps`` are there, and nothing else that takes space."""
    checkpoints = run / "checkpoints"
    assert [folders.step_of(path) for path in folders.published(checkpoints)] == steps
    for path in folders.published(checkpoints):
        assert folders.damage(path, folders.read_manifest(path)) == []
    assert len(list(checkpoints.iterdir())) == len(steps) + 1  # and latest


def last_step(run: Path) -> int:
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_stops_all_with_one_line(
    corpus: str, whole: dict[str, Any], tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    start(tmp_path, corpus, run, "train.stop_at=4", codes=[0, 0])
    errors = start(tmp_path, corpus, run, codes=[2, 2], prepare=(limit_files, rank, 10_000))
    assert len(errors) == 1 and errors[0].startswith("error: saving a checkpoint to "), errors
    assert f"failed on rank {rank} (OSError: [Errno 27] File too large" in errors[0]
    assert "earlier checkpoints are whole; free space or mend the disk, then start the same command again" in errors[0]
    assert 8 <= last_step(run) <= 12  # the save after step 8 failed, and no second one began
    require_old_ones_whole(run, [4])
    start(tmp_path, corpus, run, codes=[0, 0])
    assert outcome(run) == whole


def test_a_broken_writer_stops_all_with_its_cause(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    errors = start(tmp_path, corpus, run, codes=[1, 1], prepare=(break_writer,))
    assert sum("ValueError: the writer is broken" in line for line in errors) >= 2  # a bug: both ranks tell where
    assert sum("RuntimeError: the checkpoint writer of rank 1 failed" in line for line in errors) >= 2
    assert 4 <= last_step(run) <= 8
    assert list((run / "checkpoints").iterdir()) == []


def test_too_little_space_is_noticed_before_anything_is_written(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    errors = start(tmp_path, corpus, run, codes=[2, 2], prepare=(see_little_space,))
    assert len(errors) == 1 and "MB free; free space or lower checkpoint.keep_last" in errors[0], errors
    assert last_step(run) == 4 and list((run / "checkpoints").iterdir()) == []


def see_little_space() -> None:
    """Another rank's disk is full."""
    if os.environ["RANK"] == "1":
        folders.free_bytes = lambda root: 1000


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


if can_mount():  # where the tests may not mount disks, the limit above stands for one

    @pytest.mark.parametrize("left", [0, 60_000])
    def test_a_full_disk(corpus: str, whole: dict[str, Any], tmp_path: Path, small_disk: Path, left: int) -> None:
        """All of the run is on it, its metrics too; ``left`` bytes are free when the run goes on."""
        run = small_disk / "run"
        start(tmp_path, corpus, run, "train.stop_at=4", codes=[0, 0])
        filler = small_disk / "filler"
        free = folders.free_bytes(small_disk)
        filler.write_bytes(bytes(free - left))
        errors = start(tmp_path, corpus, run, codes=[2, 2], prepare=(see_space,))
        assert len(errors) == 1 and "bytes are free" in errors[0], errors
        require_old_ones_whole(run, [4])
        filler.unlink()
        start(tmp_path, corpus, run, codes=[0, 0])
        assert outcome(run) == whole
