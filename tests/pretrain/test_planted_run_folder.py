"""Links and pipes planted in a run folder: nothing is written or deleted through them, and nothing waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretrain import outside
from pretrain.checkpoint import folder as folders
from pretrain.config import config_from_dict
from pretrain.errors import CheckpointError
from pretrain.heartbeat import require_free
from pretrain.run_folder import RunFolder
from tests.pretrain.runs import settings


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody's, which has to stay as it is."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis").write_text("kept")
    return folder


def kept(precious: Path) -> bool:
    return [path.name for path in precious.iterdir()] == ["thesis"] and (precious / "thesis").read_text() == "kept"


def test_files_are_not_written_through_links(tmp_path: Path, precious: Path) -> None:
    run = tmp_path / "run"
    config = config_from_dict(settings("corpus", run))
    RunFolder(run).begin(config, {}, 0)
    for name in ("metrics.jsonl", "events.jsonl", "config.yaml", "deepspeed.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious / "thesis")
    folder = RunFolder(run)
    folder.append_event("x", 1)
    with pytest.raises(CheckpointError, match="cannot be written"):
        folder.require_written()
    (run / "metrics.jsonl").unlink()
    RunFolder(run).begin(config, {}, 0)  # replaces the links by files of its own
    assert kept(precious) and not (run / "config.yaml").is_symlink()


@pytest.mark.parametrize("name", ("checkpoints", "heartbeat"))
def test_folders_that_are_links_are_refused(tmp_path: Path, precious: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(precious)
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link to .*, expected a folder"):
        RunFolder(run).begin(config_from_dict(settings("corpus", run)), {}, 0)
    assert kept(precious)


@pytest.mark.parametrize("name", (".tmp-step-00000004", ".old-step-00000002", ".latest.tmp"))
def test_leftovers_that_are_links_go_and_what_they_point_to_stays(tmp_path: Path, precious: Path, name: str) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / name).symlink_to(precious)
    folders.clean(root)
    assert kept(precious) and not (root / name).is_symlink()


def test_a_checkpoint_that_is_a_link_is_retired_alone(tmp_path: Path, precious: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (4, 6):
        folders.step_folder(root, step).mkdir(parents=True)
    folders.step_folder(root, 2).symlink_to(precious)
    folders.retired_folder(root, 2).symlink_to(precious)
    assert folders.retire(folders.step_folder(root, 6), keep_last=2, keep_every=0) == [folders.step_folder(root, 2)]
    assert kept(precious) and sorted(path.name for path in root.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_save_publishes_over_links(tmp_path: Path, precious: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    temporary, final = folders.temporary_folder(root, 2), folders.step_folder(root, 2)
    for path in (temporary, final, root / ".latest.tmp"):
        path.symlink_to(precious / "thesis" if path.name == ".latest.tmp" else precious)
    folders.make_empty(temporary)
    (temporary / "state.json").write_text("{}")
    with pytest.raises(OSError, match="symbolic link"):
        folders.publish(temporary, final, {})
    assert kept(precious)
    folders.clean(root)
    folders.make_empty(temporary)
    folders.publish(temporary, final, {})
    assert kept(precious) and not final.is_symlink() and (root / "latest").read_text() == "step-00000002\n"


def test_a_pipe_is_no_heartbeat(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").mkdir()
    os.mkfifo(tmp_path / "heartbeat" / "rank-00000.json")
    require_free(RunFolder(tmp_path))
    (tmp_path / "heartbeat" / "rank-00000.json").unlink()
    (tmp_path / "heartbeat" / "rank-00000.json").write_text('{"pid": 1e999, "step": 1, "host": "x", "phase": "y"}')
    require_free(RunFolder(tmp_path))


def test_control_characters_are_spelled_out() -> None:
    assert outside.printable("a\x1b[2J\r\x9b\u202eb\nc \u00e9\u2192") == "a\\x1b[2J\\r\\x9b\\u202eb\nc \u00e9\u2192"
