"""The text of the experiment: Python's own standard library, which is on every machine that can run this, and Debian's
dictionaries where more is asked for than that has."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from pretrain.config import DataConfig
from pretrain.data.manifest import read_manifest
from pretrain.errors import DataError

from ..packages import named
from . import debian

SOURCES = ("*.py", "asyncio/*.py", "email/*.py")
"""Library modules, without tests and generated tables."""
GENERATED = ("*/_sysconfigdata*",)
"""What differs from one build of the same Python to the next."""


def prepare(spec: dict[str, Any]) -> None:
    """Make tokenizer and corpora in ``spec["folder"]``, unless they are there.

    Args:
        spec: ``folder``, ``vocab_size`` and perhaps ``debian``, the ``text`` section of a matrix file.

    Raises:
        DataError: a tool could not make them.
    """
    folder = Path(spec["folder"])
    tokenizer, prefix = folder / "tokenizer", folder / "python"
    text = ["--input", *(str(Path(sysconfig.get_path("stdlib")) / pattern) for pattern in SOURCES)]
    text += ["--exclude", *GENERATED]
    folder.mkdir(parents=True, exist_ok=True)
    if not prefix.with_name("python_train.idx").exists() and spec.get("debian"):
        text[1:1] = [str(debian.documents(package, folder / "debian")) for package in spec["debian"]]
    if not tokenizer.with_suffix(".model").exists():
        size = str(spec["vocab_size"])
        _tool("train_tokenizer", *text, "--vocab-size", size, "--output", str(tokenizer))
    if not prefix.with_name("python_train.idx").exists():
        _tool(
            "preprocess", *text, "--tokenizer", f"{tokenizer}.model", "--validation-fraction", "0.05",
            "--output", str(prefix),
        )  # fmt: skip


def identity(data: DataConfig) -> dict[str, Any]:
    """What a run reads: tokens and sha256 of every corpus of ``train`` and ``validation``, None without a manifest.

    Raises:
        DataError: a manifest cannot be read.
    """
    return {
        part: [
            None if manifest is None else {"tokens": manifest.tokens, "sha256": manifest.checksums["bin"]}
            for manifest in (read_manifest(source.path) for source in sources)
        ]
        for part, sources in (("train", data.train), ("validation", data.validation))
    }


def describe(identity: dict[str, Any]) -> str:
    """For a reader: tokens and the beginning of each checksum."""
    return " and ".join(f"{_tokens(corpora)} for {part}" for part, corpora in identity.items())


def _tokens(corpora: list[dict[str, Any] | None]) -> str:
    known = [f"{corpus['tokens']:,} tokens (sha256 {corpus['sha256'][:12]})" for corpus in corpora if corpus]
    unknown = len(corpora) - len(known)
    return " + ".join([*known, *([f"{unknown} corpora without a manifest"] if unknown else [])])


def _tool(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", named(f"tools.{name}"), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"tools.{name} could not make the experiment's text: {last.removeprefix('error: ')}")
