"""Publishing a file: whole or not at all, and never in place of what is no file."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pretrain.files import BLOCK, sha256_of, write_atomically

ROOT = Path(__file__).parent.parent.parent


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
@pytest.mark.parametrize("page", ["tools.bench", "tools.ablate"])
def test_a_device_without_room_is_one_line(page: str, tmp_path: Path) -> None:
    results = {"tools.bench": "performance", "tools.ablate": "results"}[page]
    link = tmp_path / "page.md"
    link.symlink_to("/dev/full")
    done = subprocess.run(
        [sys.executable, "-m", page, "render", ROOT / "docs" / f"{results}.json", link],
        cwd=ROOT, env={**os.environ, "MPLCONFIGDIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: [Errno 28] No space left on device: '{link}'"])


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_atomically(tmp_path, "text")


def test_a_checksum_is_read_in_blocks_that_are_told(tmp_path: Path) -> None:
    file, sizes = tmp_path / "large", []
    file.write_bytes(b"ab" * (BLOCK // 2) + b"c")
    assert sha256_of(file, sizes.append) == hashlib.sha256(file.read_bytes()).hexdigest() == sha256_of(file)
    assert sizes == [BLOCK, 1]
