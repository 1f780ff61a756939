"""Writers: what gets there, once for each step, whatever stops, comes again or fails; and the run stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pretrain.callbacks.writers import Guarded
from pretrain.writers import Run, Writer
from pretrain.writers.tags import in_words, tag_of, tagged
from smet.update import UpdateReport
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train, write_corpus

OWN = "tests.pretrain.own_writers"
BUILT_IN = ["tensorboard", {"name": "wandb", "options": {"mode": "offline"}}, "trackio"]


def three_starts(plain: dict[str, Any], told: dict[str, Any], trackio: str) -> list[dict[str, Any]]:
    """A run without writers; one with all of them that loses its last checkpoint, and goes on. Runs in the ranks."""
    os.environ["TRACKIO_DIR"] = trackio
    alone = train(plain)
    first = train({**told, "train": {**told["train"], "stop_at": 10}})
    if os.environ["RANK"] == "0":
        shutil.rmtree(Path(told["train"]["output_dir"]) / "checkpoints" / "step-00000010")
        (Path(told["train"]["output_dir"]) / "checkpoints" / "latest").unlink(missing_ok=True)
    return [alone, first, train(told)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """(folder, for each rank: plain, first, again)."""
    folder = tmp_path_factory.mktemp("writers")
    corpus = write_corpus(folder / "corpus")
    notebook = {"file": str(folder / "notes.jsonl"), "fails": [6, 7]}
    writers = [*BUILT_IN, {"name": f"{OWN}:Notebook", "options": notebook}, f"{OWN}:broken"]
    told = settings(corpus, folder / "told", checkpoint__interval=4, logging__writers=writers)
    plain = settings(corpus, folder / "plain")
    return folder, run_ranks(three_starts, 2, plain, told, str(folder / "trackio"))


def test_losses_are_those_of_a_run_without_writers(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    _, ranks = ended
    plain, _, again = ranks[0]
    for key in ("steps", "losses", "norms", "validation", "digests", "masks"):
        assert again[key] == plain[key], key


def test_tensorboard_has_each_step_once_under_grouped_tags(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, ranks = ended
    found = EventAccumulator(str(folder / "told" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = found.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} == {"train", "validation", "topology", "system"}
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 15))
    assert [event.value for event in losses] == pytest.approx(ranks[0][2]["losses"], rel=1e-6)
    moved = {event.step: event.value for event in found.Scalars("topology/moved")}
    assert sorted(moved) == [4, 8, 12] and all(moved.values())
    assert {"topology/density", "topology/recycled", "system/mfu", "system/memory_peak_fullest"} <= set(tags)


def test_wandb_has_each_step_once_in_one_run(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    """Of W&B's own files, by its own description of them: two processes, one id."""
    folder, ranks = ended
    files = sorted((folder / "told" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    rows: list[dict[str, Any]] = []
    ids, settings_seen = set(), []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                settings_seen += [item.key for item in record.run.config.update]
            if record.HasField("history"):
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                             for item in record.history.item})  # fmt: skip
    assert len(ids) == 1 and {"sparsity", "optimizer"} <= set(settings_seen)
    losses = {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 15)), "none twice"
    assert list(losses.values()) == ranks[0][2]["losses"]


def wandb_records(file: Path) -> list[Any]:
    """W&B's records. Its files are LevelDB logs (blocks of 32 kB, pieces with a header of 7 bytes) of its protocol
    buffers; the reader that W&B had for Python is gone since its service is a program of its own."""
    from wandb.proto import wandb_internal_pb2

    content, place, found, begun = file.read_bytes(), 7, [], b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # padding at the end of a block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        begun += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            found.append(record)
            begun = b""
    return found


def test_trackio_has_each_step_once_in_one_run(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    import sqlite3

    folder, ranks = ended
    with sqlite3.connect(next((folder / "trackio").glob("smet*.db"))) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    losses: dict[int, list[float]] = defaultdict(list)
    for _, step, metrics in rows:
        if "train/loss" in (values := json.loads(metrics)):
            losses[step].append(values["train/loss"])
    assert [losses[step] for step in sorted(losses)] == [[loss] for loss in ranks[0][2]["losses"]]


def test_own_ones_are_made_on_one_rank_and_told_what_they_said(
    ended: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    folder, _ = ended
    notes = [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]
    opened = [note for note in notes if note["kind"] == "open"]
    assert [(note["rank"], note["step"], note["before"]) for note in opened] == [("0", 0, {}), ("0", 8, {"page": 7})]
    assert opened[0]["name"] == "told" and [note["kind"] for note in notes].count("close") == 2
    # Steps 6 and 7 failed and are lost; 9 and 10 were there when they came again.
    steps = [note["step"] for note in notes if note["kind"] == "scalars"]
    assert steps == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14]
    assert "train/loss" in notes[1]["tags"] and not any(tag.endswith("/step") for tag in notes[1]["tags"])


def test_what_fails_is_told_once_and_counted(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    _, ranks = ended
    screen = ranks[0][1]["screen"]
    notebook, broken = f"{OWN}:Notebook", f"{OWN}:broken"
    assert screen.count(f"warning: writing to {notebook} failed (OSError: [Errno 28] No space left on device)") == 1
    assert "warning: 2 of " in screen and f" writes to {notebook} failed and are missing there" in screen
    assert screen.count(f"warning: writing to {broken} failed (ConnectionError: nobody answers)") == 1
    again = ranks[0][2]["screen"]
    assert f"{notebook} keeps what it has of steps 9 to 10, which come again" in again
    assert "tensorboard keeps what it has" not in again, "its new files take the place of the old"
    assert "writing to" not in ranks[1][1]["screen"], "the other ranks have none"


def test_the_folder_says_how_far_each_came(ended: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    folder, _ = ended
    kept = json.loads((folder / "told" / "writers.json").read_text())
    assert kept["wandb"]["step"] == kept["trackio"]["step"] == 14 and kept["wandb"]["state"]["id"]


class Fake(Writer):
    """Remembers what it is told."""

    def __init__(self, replaces: bool):
        self.replaces = replaces
        self.calls: list[Any] = []

    def scalars(self, values: Any, step: int) -> None:
        self.calls.append(step)

    def rewind(self, step: int) -> None:
        self.calls.append(f"back to {step}")


@pytest.mark.parametrize(("replaces", "expected"), [(True, [1, 2, 3, "back to 1", 2, 3, 4]), (False, [1, 2, 3, 4])])
def test_a_step_that_comes_again_takes_the_place_of_the_old_one_where_that_can_be(
    replaces: bool, expected: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one = Guarded("fake")
    one.writer = fake = Fake(replaces)
    for step in (1, 2, 3, 2, 3, 4):
        one.scalars({}, step)
    assert fake.calls == expected
    assert ("keeps what it has of steps 2 to 3" in capsys.readouterr().out) == (not replaces)


def test_a_library_that_leaves_by_itself_does_not_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Leaving(Writer):
        def scalars(self, values: Any, step: int) -> None:
            raise SystemExit("no key")

    one = Guarded("leaving")
    one.writer = Leaving()
    one.scalars({}, 1)
    one.close()
    told = capsys.readouterr().out
    assert "SystemExit: no key" in told and "1 of 2 writes to leaving failed" in told


def test_tags_are_grouped() -> None:
    record = {"step": 4, "loss": 2.0, "skipped": True, "tokens/data/a": 5, "bytes_sent_masks": 7, "mine": 1.0}
    report = UpdateReport(4, 1, 0.2, pruned=10, grown=10, recycled=3)
    found = tagged({**record, "topology": report, "text": "no figure"}, density=0.25)
    assert found["train/loss"] == 2.0 and found["train/skipped"] == 1.0 and found["train/tokens/data/a"] == 5.0
    assert found["system/bytes_sent_masks"] == 7.0 and found["own/mine"] == 1.0
    assert found["topology/moved"] == 10 and found["topology/recycled"] == 0.3 and found["topology/density"] == 0.25
    assert tag_of("update_loss_jump") == "topology/spike" and tag_of("validation_loss") == "validation/loss"
    assert not any(tag.endswith(("/step", "/text", "/topology")) for tag in found)


def test_events_are_told_in_words() -> None:
    event = {"time": 1.0, "kind": "skip", "step": 19, "why": "loss nan", "samples": [1, 9]}
    assert in_words(event) == "step 19: skip (why loss nan, samples [1, 9])"
    assert in_words({"kind": "end", "step": 3}) == "step 3: end"


def test_a_run_is_known_by_its_folder(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, name="a", settings={}, step=0, state={})
    assert Writer().state() == {} and run.step == 0
