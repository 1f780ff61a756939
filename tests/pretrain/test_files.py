"""Publishing a file: whole or not at all, and never in place of what is no file."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from pretrain.files import write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    write_atomically(target, "new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, "text")
    reader.join(timeout=10)
    assert got == ["text"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
def test_a_device_stays_one(tmp_path: Path) -> None:
    """Through a link, so that a program that gets it wrong replaces that and not the machine's own."""
    link = tmp_path / "out"
    link.symlink_to("/dev/null")
    write_atomically(link, "text")
    assert link.is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_atomically(tmp_path, "text")
