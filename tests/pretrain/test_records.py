"""Files of JSON lines, followed while they grow, are cut back, vanish, or are somebody else's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pretrain import records
from pretrain.numbers import byte_size
from pretrain.outside import read_bytes
from pretrain.records import Follower, read_rows
from pretrain.run_folder import RunFolder, RunReader
from pretrain.run_folder.reader import METRICS


def add(path: Path, *rows: Any, end: str = "\n") -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_each_poll_gives_what_was_added(tmp_path: Path) -> None:
    follower = RunReader(tmp_path).follow(METRICS)
    path = tmp_path / METRICS
    assert follower.poll().rows == [], "a run that has not begun"
    add(path, {"step": 1}, {"step": 2})
    assert steps(follower.poll().rows) == [1, 2]
    assert follower.poll().rows == []
    add(path, {"step": 3}, end="")
    news = follower.poll()
    assert news.rows == [] and not news.again, "its line end is still to come"
    add(path, end="\n")
    assert steps(follower.poll().rows) == [3]


@pytest.mark.parametrize("size", (1, 7, 1 << 22))
def test_lines_are_whole_however_they_are_cut(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "AT_ONCE", size)
    text = "".join(json.dumps({"step": n, "word": "ä€"}, ensure_ascii=False) + "\n" for n in range(20)).encode()
    follower, found = Follower(tmp_path / "a"), []
    with open(tmp_path / "a", "ab", buffering=0) as file:
        for place in range(0, len(text), 13):
            file.write(text[place : place + 13])
            found += follower.poll().rows
    assert steps(found) == list(range(20)) and {row["word"] for row in found} == {"ä€"}


def test_a_long_file_comes_in_parts_to_those_who_ask_for_that(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(b'{"step": %d}\n' % step for step in range(100)))
    follower, steps, parts = Follower(file), [], 0
    more = True
    while more:
        news = follower.poll(most=200)
        steps += [row["step"] for row in news.rows]
        more, parts = news.more, parts + 1
        assert not news.again
    assert steps == list(range(100)) and parts == -(-file.stat().st_size // 200)
    assert follower.poll(most=200).rows == []


def test_a_run_that_goes_back_is_told_anew(tmp_path: Path) -> None:
    folder, follower = RunFolder(tmp_path), RunReader(tmp_path).follow(METRICS)
    for step in range(1, 6):
        folder.append(METRICS, {"step": step, "seconds": 0.25})
    assert steps(follower.poll().rows) == [1, 2, 3, 4, 5]
    folder.forget_after(2)
    folder.forget_after(2)  # the second file may have the first one's inode
    for step in range(3, 9):
        folder.append(METRICS, {"step": step, "seconds": 0.5})
    news = follower.poll()
    assert news.again and steps(news.rows) == list(range(1, 9))
    assert not follower.poll().again


def test_a_file_that_is_cut_or_written_over_in_place_is_told_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    follower = Follower(path)
    add(path, *({"step": n} for n in range(1, 6)))
    follower.poll()
    os.truncate(path, 12)
    assert (news := follower.poll()).again and steps(news.rows) == [1]
    path.write_text("".join(f'{{"step": {n}}}\n' for n in range(7, 30)))
    assert (news := follower.poll()).again and steps(news.rows) == list(range(7, 30))
    path.unlink()
    assert (news := follower.poll()).again and news.rows == []
    add(path, {"step": 1})
    assert not (news := follower.poll()).again and steps(news.rows) == [1]


def test_what_is_planted_is_counted_and_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST_LINE", 10_000)
    monkeypatch.setattr(records, "AT_ONCE", 1000)
    path = tmp_path / METRICS
    follower = RunReader(tmp_path).follow(METRICS, ["loss"])
    bad = [b"[1]", b"7", b"{", b"\xff\xfe", b"[" * 9000, b'{"step": 1}', b'{"step": "x", "loss": 1}',
           b'{"loss": true}', b'{"loss": [1]}', b'{"loss": 1e999}', b'{"loss": 1' + b"0" * 400 + b"}",
           b'{"loss": 1, "x": "' + b"x" * 50_000 + b'"}']  # fmt: skip
    path.write_bytes(b'{"loss": 1}\n' + b"\n".join(bad) + b'\n\n{"loss": null}\n')
    news = follower.poll()
    assert [row["loss"] for row in news.rows] == [1, None] and news.left_out == len(bad)
    assert len(follower.half) == 0
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        follower.poll()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}'"):  # by its name, not by a number
        read_bytes(tmp_path, 10)


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"step": 1, "loss": 2.5}', b'{"step": 2, "loss": null}', b"{}", b'{"step": "x"}', b'{"step": 3}'],
        [b'{"step": 1, "a": {"b": 2}}', b'{"step": 2}'],
        [b'{"step": 1, "a": "}"}', b'{"step": 2, "a": "{"}', b'{"step": 3}'],
        [b'{"step": 1, "a": "x}', b'{y", "b": 2}', b'{"step": 3}'],
        [b'{"step": 1, "a": [1', b'2]},{"step": 2}', b'{"step": 3}'],
        [b'{"step": 1},{"step": 2}', b'{"step": 3}'],
        [b'{"step": 1}', b"", b'{"step": 3}', b" ", b'\xef\xbb\xbf{"step": 4}', b'{"step": 5}\r'],
        [b'{"step": 1, "a": "\xff"}', b'{"step": 2, "a": "\t"}', b'{"step": 3, "a": NaN}'],
    ],
)  # fmt: skip
def test_lines_that_come_together_are_read_as_one_by_one(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / METRICS
    path.write_bytes(b"\n".join(lines) + b"\n")
    follower = Follower(path, ["step"])
    alone = [follower.usable(line) for line in lines if line.strip()]
    news = follower.poll()
    assert repr(news.rows) == repr([row for row in alone if row is not None])
    assert news.left_out == alone.count(None)


def test_a_reader_of_all_takes_a_whole_last_line_and_says_what_it_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a"
    add(path, {"step": 1}, [2], {"step": 3}, end="")
    assert steps(read_rows(path, ["step"])) == [1, 3]
    assert "1 of 3 lines of" in capsys.readouterr().err
    add(path, end='\n{"step": 4, "lo')
    assert steps(read_rows(path, ["step"])) == [1, 3]


def test_sizes() -> None:
    for text, size in (
        ("80GB", 80e9), ("40GiB", 40 * 2**30), ("1e9", 1e9), ("2 TB", 2e12), ("500k", 500e3), ("0.5M", 5e5),
        ("3 kib", 3072), ("7", 7), ("7b", 7), ("1T", 1e12),
    ):  # fmt: skip
        assert byte_size(text) == size
    for text in ("GB", "-1GB", "8Gb8", "40GiX", "1GG", "iB", "5iB", "0.1"):
        with pytest.raises(Exception, match="is not a size in bytes"):
            byte_size(text)
