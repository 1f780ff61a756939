"""Bad inputs from a seed: command lines with a word changed, and whole inputs with something in them damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sweep.judge import MARKER
from tests.sweep.tools import ARTIFACTS, TOOLS, Tool

ALL = {**TOOLS, **ARTIFACTS}

NASTY = (
    "", " ", "-1", "0", "-0.5", "1.5", "1e999", "nan", "inf", "99999999999999999999", "0x10", "1_000", "\u0663",
    "true", "null", "[]", "{}", "{a: [1", "a,b", "=", "a=b", "train.steps=", "=5", "nope.key=1", "train.stesp=5",
    "train={}", "model=null", "train.steps=nan", "optimizer.lr=.inf", "sparsity.density=0", "sparsity.block=[0,0]",
    "data.train=[]", "parallel.tensor=3", "parallel.pipeline=9", "../../nowhere", ".", "..", "~", "~nobody/x",
    "/dev/null", "/dev/full", "/dev/full/x", "/proc/self/mem", "run", "run.yaml", "text.jsonl", "corpus", "tok.model",
    "broken-link", "link-loop", "folder", "empty", "binary", "no\u00ef\u4f60", "x" * 300, "x/" * 2100, "a\nb",
    "\x1b[31mred", f"$(touch {MARKER})", f";touch {MARKER};", f"`touch {MARKER}`", f"-oProxyCommand=touch {MARKER}",
    f"!!python/object/apply:os.system ['touch {MARKER}']", "\udcff", "*", "**", "[", "-", "--", "--json", "--help",
    "-x", "--outptu", "--seed=x", "@file",
)  # fmt: skip

OTHERS = (
    b"", b"\n", b"\x00" * 64, b"\xff\xfe{\x00}\x00", b"PK\x03\x04 no archive", b"\x89PNG\r\n\x1a\n", b"{}", b"[]",
    b"null", b"NaN", b"[" * 3000, b'{"a":' * 3000, b"\x1f\x8b\x08\x00 cut", b"a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    f"!!python/object/apply:os.system ['touch {MARKER}']\n".encode(),
    b"cposix\nsystem\n(S'touch " + MARKER.encode() + b"'\ntR.", b"\x80\x04\x95", b"- 1\n- 2\n", b"{{ LR }}", b"a: b: c",
    b"1e400", b"\xef\xbb\xbf{}", b'{"step": 1' + b"0" * 5000 + b"}",
)  # fmt: skip

VALUES = ("-1", "0", "1e999", "9" * 20, "null", '"x"', "[]", "{}", "nan", "../../x", "/etc/passwd", "true")


def cases(name: str, count: int, seed: int, root: Path) -> Iterator[dict[str, Any]]:
    """``count`` cases of a tool or artifact; ``prepare`` makes the folder of each. Of artifacts, number 0 is whole."""
    tool = ALL[name]
    for number in range(count):
        rng = random.Random(f"{seed} {name} {number}")
        words = rng.choice(tool.commands).split()
        case = {"tool": name, "number": number, "module": tool.module, "folder": str(root / name / str(number))}
        if name in ARTIFACTS and number == 0:
            yield {**case, "argv": words, "how": "whole", "damage": None}
        elif name in TOOLS and rng.random() < 0.5:
            words, how = _mutate(rng, tool, words)
            yield {**case, "argv": words, "how": how, "damage": None}
        else:
            yield {**case, "argv": words, "how": "damaged input", "damage": rng.randrange(2**32)}


def _mutate(rng: random.Random, tool: Tool, words: list[str]) -> tuple[list[str], str]:
    made, told = list(words), []
    for _ in range(rng.choice((1, 1, 2))):
        free = [at for at, word in enumerate(made) if word not in tool.kept]
        kind, at = rng.choice(("replace", "replace", "insert", "drop", "twice", "misspell")), rng.choice(free)
        if kind == "replace":
            made[at] = rng.choice(NASTY)
        elif kind == "insert":
            made.insert(at + 1, rng.choice(NASTY))
        elif kind == "drop" and len(free) > 1:
            del made[at]
        elif kind == "twice":
            made.insert(at, made[at])
        else:
            letter = rng.randrange(len(made[at]) + 1)
            made[at] = made[at][:letter] + rng.choice("xZ-9") + made[at][letter + 1 :]
        told.append(kind)
    return made, " and ".join(told)


def prepare(case: dict[str, Any], world: Path) -> None:
    """Make the case's folder: ``in`` with copies of the tool's inputs, damaged if the case says so."""
    tool, into = ALL[case["tool"]], Path(case["folder"]) / "in"
    shutil.rmtree(into.parent, ignore_errors=True)
    into.mkdir(parents=True)
    for name in tool.inputs:
        source = world / name
        if source.is_dir():
            shutil.copytree(source, into / name)
        else:
            shutil.copy(source, into / name)
    (into / "folder").mkdir()
    (into / "empty").touch()
    (into / "binary").write_bytes(random.Random(0).randbytes(2000))
    (into / "broken-link").symlink_to("nowhere")
    (into / "link-loop").symlink_to("link-loop")
    if case["damage"] is not None:
        rng = random.Random(case["damage"])
        files = [path for name in tool.inputs for path in _files(into / name)]
        case["how"] = "; ".join(damage(rng, rng.choice(files), files) for _ in range(rng.choice((1, 1, 1, 3))))


def _files(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]


def damage(rng: random.Random, path: Path, files: list[Path]) -> str:
    """Damage one file in one way; returns what was done."""
    if not path.is_file():
        return f"{path.name} is gone already"
    content = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "flip", "cut", "drop", "fill", "other", "swap", "insert", "word", "number"))
    at = rng.randrange(len(content) + 1)
    if kind == "flip" and content:
        for _ in range(rng.choice((1, 1, 8))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "fill":
        content[at : at + 64] = bytes(64)
    elif kind == "other":
        content[:] = rng.choice(OTHERS)
    elif kind == "swap":
        other = rng.choice(files)
        content[:] = other.read_bytes() if other.is_file() else b""
    elif kind == "insert":
        content[at:at] = rng.choice(OTHERS)
    elif kind in ("word", "number"):
        _edit(rng, content, digits=kind == "number")
    if kind == "drop":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{kind} {path.name}"


def _edit(rng: random.Random, content: bytearray, digits: bool) -> None:
    """Another value where a text file has a word or a number."""
    wanted = b"0123456789.-" if digits else b"abcdefghijklmnopqrstuvwxyz_"
    places = [at for at in range(min(len(content), 20000)) if content[at] in wanted]
    if not places:
        return
    first = last = rng.choice(places)
    while first > 0 and content[first - 1] in wanted:
        first -= 1
    while last < len(content) and content[last] in wanted:
        last += 1
    content[first:last] = rng.choice(VALUES).encode()
