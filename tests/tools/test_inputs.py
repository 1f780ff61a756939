"""What is read and what is passed over: each file once, links followed, circles ended, all of it said in numbers."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pytest
import zstandard

from tests.tools.texts import write_jsonl
from tools.corpus.inputs import Inputs, find_inputs
from tools.preprocess import build_parser, main


def find(*options: str) -> Inputs:
    return find_inputs(build_parser().parse_args(["--tokenizer", "t", "--output", "o", *options]))


def names(inputs: Inputs, folder: Path) -> list[str]:
    return [os.path.relpath(source.path, folder) for source in inputs.sources]


def jsonl(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, texts)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with everything that people have in theirs."""
    folder = tmp_path / "in"
    for number, name in enumerate(("a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl", "with space\nand line/d.jsonl")):
        jsonl(folder / name, f"document {number}")
    jsonl(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", "document 0")
    jsonl(folder / "sub" / "._b.jsonl", "an editor's copy")
    jsonl(tmp_path / "elsewhere" / "far.jsonl", "document 5")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "round").symlink_to("round")
    (folder / "twice.jsonl").symlink_to("a.jsonl")
    os.link(folder / "sub" / "b.jsonl", folder / "hard.jsonl")
    for name in ("data.csv", "model.bin", "_SUCCESS", "more.csv"):
        (folder / name).write_text("no text")
    (folder / "none.jsonl").touch()
    os.mkfifo(folder / "pipe.jsonl")
    return folder


READ = ["a.jsonl", "hard.jsonl", "link/far.jsonl", "none.jsonl", "sub/deep/c.jsonl", "with space\nand line/d.jsonl"]
PASSED = {
    "hidden": 2, ".csv": 2, ".bin": 1, "without a suffix": 1, "named twice": 2, "broken links": 1,
    "links to a folder read already": 1, "neither file nor folder": 1,
}  # fmt: skip


@pytest.mark.parametrize("pattern", ["", "/", "/*", "/**", "/**/*", "/*.*"])
def test_a_folder_and_the_patterns_for_all_of_it_read_the_same_files(tree: Path, pattern: str) -> None:
    inputs = find("--input", f"{tree}{pattern}")
    assert names(inputs, tree) == READ
    assert inputs.passed.counts == PASSED
    line = str(inputs)
    assert "reading 6 files (6 jsonl;" in line and "1 of them empty; passed over 11: " in line
    assert f"2 .csv ({tree}/data.csv)" in line


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl", "hard.jsonl", "none.jsonl"]),
        ("**/*.jsonl", READ),
        ("**/deep", ["sub/deep/c.jsonl"]),
        ("s*/**/c.jsonl", ["sub/deep/c.jsonl"]),
        ("*/deep/*", ["sub/deep/c.jsonl"]),
        ("[!a-r]*/**", ["sub/b.jsonl", "sub/deep/c.jsonl", "sub/up/a.jsonl", "sub/up/link/far.jsonl",
                        "sub/up/none.jsonl", "with space\nand line/d.jsonl"]),
        ("d?ta.csv", ["data.csv"]),
        (".ipynb_checkpoints/*", [".ipynb_checkpoints/a-checkpoint.jsonl"]),
    ],
)  # fmt: skip
def test_patterns_take_what_they_fit(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(find("--input", f"{tree}/{pattern}"), tree) == expected


def test_relative_patterns_keep_their_spelling(tree: Path, monkeypatch) -> None:
    monkeypatch.chdir(tree)
    assert names(find("--input", "*"), tree) == READ
    assert [source.path for source in find("--input", "**/a.jsonl").sources] == ["a.jsonl"]


def test_circles_of_links_end_and_lose_nothing(tmp_path: Path) -> None:
    for name in "ab":
        jsonl(tmp_path / name / "x.jsonl", name)
        for other in "ab":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    for given in ("", "/**", "/**/*.jsonl"):
        assert names(find("--input", f"{tmp_path}{given}"), tmp_path) == ["a/x.jsonl", "b/x.jsonl"]
    found = find("--input", f"{tmp_path}/a")
    assert names(found, tmp_path) == ["a/to_b/x.jsonl", "a/x.jsonl"]


def test_one_file_under_several_spellings_is_read_once(tree: Path, monkeypatch) -> None:
    monkeypatch.chdir(tree)
    spelled = ["a.jsonl", "./a.jsonl", str(tree / "a.jsonl"), "twice.jsonl", "sub/../a.jsonl", "sub", "hard.jsonl"]
    inputs = find("--input", *spelled)
    assert [source.path for source in inputs.sources] == [
        "a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl", "sub/up/link/far.jsonl", "sub/up/none.jsonl",
        "sub/up/with space\nand line/d.jsonl",
    ]  # fmt: skip
    assert inputs.passed.counts["named twice"] == 8


def test_include_and_exclude_hold_for_all_ways_of_naming(tree: Path, tmp_path: Path) -> None:
    options = ["--include", "*.jsonl", "*.csv", "--exclude", "*/sub/*", "none.jsonl"]
    by_folder = names(find("--input", str(tree), *options), tree)
    assert by_folder == ["a.jsonl", "data.csv", "hard.jsonl", "link/far.jsonl", "more.csv", READ[-1]]
    assert names(find("--input", f"{tree}/**", *options), tree) == by_folder
    shell = [str(path) for path in sorted(tree.glob("*")) if path.is_file()]
    assert names(find("--input", *shell, *options), tree) == ["a.jsonl", "data.csv", "hard.jsonl", "more.csv"]


def test_what_the_tools_wrote_beside_their_input_is_no_input(tmp_path: Path, model: str, capsys) -> None:
    jsonl(tmp_path / "in" / "x.jsonl", "one", "two")
    with (tmp_path / "in" / "x.jsonl").open("a") as file:
        file.write("broken\n")
    args = ["--input", str(tmp_path / "in"), "--tokenizer", model, "--output", str(tmp_path / "in" / "c")]
    assert main([*args, "--workers", "1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["documents"], first["rejected"], first["rejects"]) == (2, 1, str(tmp_path / "in" / "c.rejects.jsonl"))
    assert main([*args, "--workers", "1", "--json", "--overwrite"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["documents"], again["files"]) == (2, 1)
    assert again["passed_over"] == {"written by these tools": 2, ".bin": 1, ".idx": 1}


def test_other_compressions_in_a_folder_are_read(tmp_path: Path, model: str, capsys) -> None:
    made = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
    made["zstd"] = zstandard.compress
    (tmp_path / "in").mkdir()
    for name, compress in made.items():
        (tmp_path / "in" / f"x.jsonl.{name}").write_bytes(compress(json.dumps({"text": name}).encode() + b"\n"))
    args = ["--input", str(tmp_path / "in"), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["files"], summary["documents"], summary["rejected"]) == (5, 5, 0)


def test_names_that_are_not_utf8_and_folders_that_cannot_be_listed(
    tmp_path: Path, model: str, capsys, monkeypatch
) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/in/caf\xe9.jsonl")
    jsonl(tmp_path / "in" / "plain.jsonl", "one")
    os.rename(jsonl(tmp_path / "in" / "y.jsonl", "two"), odd)
    args = ["--input", str(tmp_path / "in"), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2

    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("tools.corpus.walk.os.scandir", refuse)
    assert main([*args, "--overwrite"]) == 2
    assert "cannot be read: Permission denied" in capsys.readouterr().err


def test_pipes_and_sockets_are_one_line(tmp_path: Path, model: str, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket", "/dev/null"):
            assert main(["--input", str(tmp_path / name), "--tokenizer", model, "--output", str(tmp_path / "c")]) == 2
            assert "give --input -" in capsys.readouterr().err
