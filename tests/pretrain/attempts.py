"""Starts of the program that should be refused: exit code, screen, and what they left behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from pretrain.__main__ import main
from pretrain.data.manifest import Manifest
from tests.distributed import free_port
from tests.pretrain.runs import VOCABULARY, settings, write_corpus

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Attempt:
    """How one start of the program ended."""

    code: int
    out: str
    err: str
    changed: list[str]
    """Paths below the watched folder that were written, added or removed."""

    def sole_error(self) -> str:
        """The one line it printed; fails if there was more, less, or something was touched."""
        assert self.code == 2, (self.code, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        assert self.out == "" and self.changed == [], (self.out, self.changed)
        return lines[0].removeprefix("error: ")


def attempt(arguments: list[str], watched: str) -> Attempt:
    """Run ``python -m pretrain`` with ``arguments`` in this process."""
    before = snapshot(Path(watched))
    out, err = io.StringIO(), io.StringIO()
    ranks_outlive_it = mock.patch("os._exit", sys.exit)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), ranks_outlive_it:
        try:
            code = main(arguments)
        except SystemExit as bug:
            code = int(bug.code or 0)
    return Attempt(code, out.getvalue(), err.getvalue(), _changed(before, snapshot(Path(watched))))


def attempt_all(cases: list[tuple[list[str], str]]) -> list[Attempt]:
    """Each case in turn inside the ranks that call this."""
    return [attempt(arguments, watched) for arguments, watched in cases]


def launch(
    ranks: int, arguments: list[str], program: Sequence[str] = ("-m", "pretrain"), **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Start the program on real processes as a launcher would, and wait for all of them; results by rank."""
    return wait(start(ranks, arguments, program, **environment))


def start(
    ranks: int, arguments: list[str], program: Sequence[str] = ("-m", "pretrain"), **environment: str
) -> list[subprocess.Popen[str]]:
    """Start the program on real processes as a launcher would."""
    port = str(free_port())
    command = [sys.executable, *program, *arguments]
    processes = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        placed = {key: str(value) for key, value in own.items()} if ranks > 1 else {}
        inherited = {key: value for key, value in os.environ.items() if key not in own}
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **placed, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def wait(processes: list[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """How each process ended; none is left behind."""
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *end)
        for process, end in zip(processes, ends, strict=True)
    ]


def snapshot(folder: Path) -> dict[str, str]:
    """Digest of every file below ``folder``, and which folders there are."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def write_run_file(path: Path, corpus: str, output: Path, **changes: Any) -> str:
    """A run file of the tests' tiny model."""
    path.write_text(yaml.safe_dump(settings(corpus, output, **changes)))
    return str(path)


def corpus_with_manifest(prefix: Path, vocabulary: int = VOCABULARY, tokenizer: bytes = b"a tokenizer") -> str:
    """A corpus as ``tools.preprocess`` leaves it: it knows its vocabulary and its tokenizer."""
    write_corpus(prefix, tokens=2000)
    Manifest(
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        vocab_size=vocabulary,
        eos_id=0,
        dtype=np.dtype(np.uint16).name,
        documents=10,
        tokens=2000,
        checksums={},
    ).write(prefix)
    return str(prefix)
