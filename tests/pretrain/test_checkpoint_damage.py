"""Any damage to a published checkpoint is found and its file named; training goes on from the one before."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint.folder import MANIFEST, read_manifest
from pretrain.checkpoint.load import choose, problems_of
from pretrain.errors import CheckpointError
from pretrain.layout import Layout
from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt, write_run_file
from tests.pretrain.runs import outcome, settings, train_all, write_corpus
from tools import inspect_checkpoint

SMALL = {"train__steps": 6, "checkpoint__interval": 2, "evaluation__interval": 0, "parallel__zero_stage": 2}
FILES = (MANIFEST, "state.json", ".metadata", "__0_0.distcp", "__1_0.distcp")
ALONE = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)


def cases() -> Iterator[tuple[str, str]]:
    """60 of them: each file in turn is removed, cut off at 3 places, and changed at 8."""
    for name in FILES:
        yield name, "remove"
        yield from ((name, "truncate"),) * 3
        yield from ((name, "change"),) * 8


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Remove a file, cut it off anywhere, or put another byte anywhere."""
    content = bytearray(path.read_bytes())
    position = rng.randrange(len(content))
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[:position])
    else:
        content[position] ^= rng.randrange(1, 256)
        path.write_bytes(content)


WHOLE_PROGRAM = (("__1_0.distcp", "change"), (MANIFEST, "remove"), ("state.json", "truncate"), (MANIFEST, "change"))


def go_on(folder: Path, job: dict[str, Any], file: str) -> list[tuple[Attempt, Attempt, Attempt | None]]:
    """Train; then, for each damage, start with the damaged one's path, with ``auto``, and as the former said.

    Runs in the ranks; the main one does the damage.
    """
    train_all([job])
    results = []
    for number, (name, how) in enumerate(WHOLE_PROGRAM):
        run = folder / f"run-{number}"
        if torch.distributed.get_rank() == 0:
            shutil.copytree(folder / "run", run)
            damage(run / "checkpoints" / "step-00000006" / name, how, random.Random(number))
        torch.distributed.barrier()
        output = f"train.output_dir={run}"
        by_path = attempt([file, output, f"checkpoint.resume={run}/checkpoints/step-00000006"], str(run))
        errors: list[Any] = [None, None]
        torch.distributed.all_gather_object(errors, by_path.err)
        remedy = re.search(r"checkpoint\.resume=\S+", errors[0])
        branch = f"train.output_dir={folder}/branch-{number}"
        followed = attempt([file, branch, remedy[0]], str(folder / "corpus")) if remedy else None
        results.append((by_path, attempt([file, output], str(folder / "corpus")), followed))
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def starts(folder: Path) -> list[list[tuple[Attempt, Attempt, Attempt | None]]]:
    """By rank and damage; afterwards ``folder/run`` holds whole checkpoints of steps 2, 4 and 6."""
    corpus = write_corpus(folder / "corpus" / "train", tokens=5000)
    file = write_run_file(folder / "run.yaml", corpus, folder / "run", **SMALL)
    return run_ranks(go_on, 2, folder, settings(corpus, folder / "run", **SMALL), file, timeout=100)


def test_sixty_damages_are_found_and_their_files_named(
    starts: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root = folder / "run" / "checkpoints", tmp_path / "checkpoints"
    assert sorted(FILES) == sorted(path.name for path in (source / "step-00000006").iterdir())
    shutil.copytree(source, root)
    damaged, before = root / "step-00000006", root / "step-00000004"
    assert choose("auto", root, ALONE) == damaged and capsys.readouterr().out == ""
    rng = random.Random(60)
    assert len(list(cases())) == 60
    for name, how in cases():
        damage(damaged / name, how, rng)
        found = problems_of(damaged, ALONE)
        assert found and str(damaged) in found[0] and name in found[0], (name, how, found)
        assert choose("auto", root, ALONE) == before
        warning = capsys.readouterr().out
        assert name in warning and "going on from step-00000004 instead" in warning
        with pytest.raises(CheckpointError, match=re.escape(name)):
            choose(str(damaged), root, ALONE)
        assert inspect_checkpoint.main([str(damaged)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and name in errors[0] and errors[0].endswith(f"; try {before}")
        shutil.copyfile(source / "step-00000006" / name, damaged / name)
        assert problems_of(damaged, ALONE) == []


def test_any_byte_of_the_manifest_counts(starts: Any, folder: Path, tmp_path: Path) -> None:
    """It guards the other files, and itself: also where JSON does not care, as between a blank and a line's end."""
    content = (folder / "run" / "checkpoints" / "step-00000006" / MANIFEST).read_bytes()
    rng = random.Random(0)
    blanks = [(at, rng.choice(b" \n\t\r")) for at in range(len(content)) if content[at] in b" \n"]
    others = [(at, rng.randrange(256)) for at in range(0, len(content), 5)]
    for at, byte in (*blanks, *others):
        if content[at] == byte:
            continue
        (tmp_path / MANIFEST).write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=MANIFEST):
            read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content)
    assert read_manifest(tmp_path)["step"] == 6


@pytest.mark.parametrize("number", range(len(WHOLE_PROGRAM)), ids=[" ".join(case) for case in WHOLE_PROGRAM])
def test_a_run_goes_on_from_the_one_before(starts: Any, folder: Path, number: int) -> None:
    name, _ = WHOLE_PROGRAM[number]
    (by_path, automatic, followed), (other_by_path, other_automatic, _) = (rank[number] for rank in starts)
    error = by_path.sole_error()
    run = folder / f"run-{number}"
    assert name in error and other_by_path.code == 2 and other_by_path.err == ""
    assert f"checkpoint.resume={run}/checkpoints/step-00000004" in error
    assert (automatic.code, automatic.err, other_automatic.code) == (0, "", 0)
    warning, resumed, *_ = automatic.out.splitlines()
    assert warning.startswith("warning: ") and name in warning and "step-00000004 instead" in warning
    assert resumed == f"resumed from {run}/checkpoints/step-00000004 after step 4"
    assert outcome(run) == outcome(folder / "run")
    assert followed is not None and followed.code == 0, followed
    assert outcome(folder / f"branch-{number}")["losses"] == outcome(folder / "run")["losses"][4:]
    assert problems_of(run / "checkpoints" / "step-00000006", ALONE) == []  # written anew


def test_nothing_whole_is_one_line(starts: Any, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(folder / "run" / "checkpoints", root)
    for step in (2, 4, 6):
        damage(root / f"step-{step:08d}" / "state.json", "truncate", random.Random(step))
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*step-00000006/state.json has") as caught:
        choose("auto", root, ALONE)
    assert "\n" not in str(caught.value)


def test_what_is_not_published_is_not_read(starts: Any, folder: Path, tmp_path: Path) -> None:
    """A folder that a save did not finish, or that retention had begun to delete, and other people's files."""
    root = tmp_path / "checkpoints"
    shutil.copytree(folder / "run" / "checkpoints", root)
    for name in (".tmp-step-00000008", ".old-step-00000009", "step-99", "my-step-00000010", "step-00000011.bak"):
        shutil.copytree(root / "step-00000006", root / name)
    (root / "step-00000012").write_text("a file")
    assert choose("auto", root, ALONE) == root / "step-00000006"
    assert json.loads((root / "step-00000006" / MANIFEST).read_text())["step"] == 6
