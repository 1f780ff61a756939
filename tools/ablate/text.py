"""The text of the experiment: Python's own standard library, which is on every machine that can run this."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from pretrain.errors import DataError

SOURCES = ("*.py", "asyncio/*.py", "email/*.py")
"""Library modules, without tests and generated tables."""


def prepare(spec: dict[str, Any]) -> None:
    """Make tokenizer and corpora in ``spec["folder"]``, unless they are there.

    Args:
        spec: ``folder`` and ``vocab_size``, the ``text`` section of a matrix file.

    Raises:
        DataError: a tool could not make them.
    """
    folder = Path(spec["folder"])
    tokenizer, prefix = folder / "tokenizer", folder / "python"
    text = ["--input", *(str(Path(sysconfig.get_path("stdlib")) / pattern) for pattern in SOURCES)]
    folder.mkdir(parents=True, exist_ok=True)
    if not tokenizer.with_suffix(".model").exists():
        size = str(spec["vocab_size"])
        _tool("tools.train_tokenizer", *text, "--vocab-size", size, "--output", str(tokenizer))
    if not prefix.with_name("python_train.idx").exists():
        _tool(
            "tools.preprocess", *text, "--tokenizer", f"{tokenizer}.model", "--validation-fraction", "0.05",
            "--output", str(prefix),
        )  # fmt: skip


def _tool(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{module} could not make the experiment's text: {last.removeprefix('error: ')}")
