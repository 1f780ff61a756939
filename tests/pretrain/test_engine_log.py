"""DeepSpeed's lines: all in the file, warnings on the screen too, and the logger as it was when the run is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.engine.log import NAME, listen, stop_listening

LOGGER = logging.getLogger(NAME)


class Shown(logging.Handler):
    """What DeepSpeed's own handler shows."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def shown() -> Iterator[Shown]:
    level, handler = LOGGER.level, Shown()
    LOGGER.setLevel(logging.WARNING)
    LOGGER.addHandler(handler)
    yield handler
    stop_listening()
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def test_lines_wait_for_the_folder_and_warnings_are_shown_too(shown: Shown, tmp_path: Path) -> None:
    log = listen(tmp_path / "logs", rank=0)
    LOGGER.info("a detail")
    LOGGER.warning("a trap \x1b[31m")
    assert not log.path.exists() and log.lines == 2
    log.open()
    LOGGER.error("a fault")
    text = log.path.read_text().splitlines()
    assert [line.rpartition("] ")[2] for line in text] == ["a detail", "a trap \\x1b[31m", "a fault"]
    assert [message.split()[1] for message in shown.lines] == ["trap", "fault"]
    assert log.describe().startswith("3 lines of DeepSpeed in ")


def test_the_logger_is_as_it_was_afterwards(shown: Shown, tmp_path: Path) -> None:
    stop_listening()  # an earlier test may have run a program in this process
    level, handlers = LOGGER.level, list(LOGGER.handlers)
    first = listen(tmp_path / "a", rank=0)
    second = listen(tmp_path / "b", rank=0)
    LOGGER.info("once")
    assert (first.lines, second.lines) == (0, 1)
    stop_listening()
    LOGGER.info("nobody hears it")
    assert second.lines == 1 and LOGGER.level == level and LOGGER.handlers == handlers and shown in handlers


def test_a_folder_that_cannot_be_written_is_told_once(
    shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file")
    log = listen(tmp_path / "logs", rank=3)
    log.open()
    for number in range(3):
        LOGGER.info("line %d", number)
    told = capsys.readouterr().out
    assert told.count("cannot be written") == 1 and "engine-rank3.log" in told and log.lines == 3


def test_a_link_in_its_place_is_not_followed(shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine")
    log = listen(tmp_path, rank=0)
    log.path.symlink_to(other)
    log.open()
    LOGGER.info("planted")
    assert other.read_text() == "mine" and "cannot be written" in capsys.readouterr().out


def test_a_rank_of_which_nothing_is_said_makes_no_file(shown: Shown, tmp_path: Path) -> None:
    log = listen(tmp_path / "logs", rank=1)
    log.open()
    assert not log.path.parent.exists()
