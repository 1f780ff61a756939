"""Runs cells side by side, each in a process of its own; finished ones are left alone, stopped ones go on."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, config_from_dict
from pretrain.config.load import merge, named_family
from pretrain.errors import DataError
from pretrain.files import write_atomically

from ..corpus.progress import progress
from . import text
from .cell import RESULT, SPEC
from .matrix import Cell

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Failure:
    """A cell that did not end well, and its last word."""

    name: str
    message: str


def command(folder: Path, launcher: str) -> list[str]:
    """What runs the cell in ``folder``; ``launcher`` is a command that ends where a module is named."""
    start = shlex.split(launcher) if launcher else [sys.executable, "-m"]
    return [*start, f"{__package__}.cell", str(folder)]


def finished(folder: Path, cell: Cell) -> bool:
    """Whether ``folder`` holds the result of this very cell.

    Raises:
        DataError: it holds a cell of the same name with other settings.
    """
    try:
        present = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if _resolved(present) != _resolved(spec(cell)):
        raise DataError(
            f"{folder} holds the cell with other settings; choose another --out, or remove that folder to run it anew"
        )
    return (folder / RESULT).exists()


def results_in(out: Path) -> list[dict[str, Any]]:
    """Results of all cells that are finished in ``out``, of whatever matrix.

    Raises:
        DataError: one cannot be read.
    """
    found = []
    for path in sorted(out.glob(f"*/{RESULT}")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove {path.parent} to run the cell anew") from None
    return found


def _require_same_text(folder: Path, cell: Cell) -> None:
    trained = json.loads((folder / RESULT).read_text(encoding="utf-8")).get("text")
    present = text.identity(_config(cell.settings).data)
    if trained != present:
        raise DataError(
            f"{folder} was trained on another text than there is now ({text.describe(present)}); choose another --out, "
            "or remove that folder to run the cell anew"
        )


def spec(cell: Cell) -> dict[str, Any]:
    """What ``cell.json`` holds."""
    made = {"kind": cell.kind, "labels": cell.labels(), "settings": cell.settings, "measure": cell.measure}
    if cell.plain is not None:
        made["plain"] = cell.plain
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def digest(spec: dict[str, Any]) -> str:
    """Tells cells with other settings apart, whether defaults are written out or not."""
    return hashlib.sha256(json.dumps(_resolved(spec), sort_keys=True).encode()).hexdigest()[:16]


def write_spec(folder: Path, cell: Cell) -> None:
    """Say in ``folder`` which cell it holds."""
    write_atomically(folder / SPEC, json.dumps(spec(cell), indent=1) + "\n")


def _resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """A cell with every default written out: naming one changes nothing."""
    return {**spec, "settings": _config(spec["settings"]).to_dict()}


def _config(settings: dict[str, Any]) -> RunConfig:
    return config_from_dict(merge(settings, {"train": {"output_dir": "x"}}), (named_family(settings),))


def run(cells: list[Cell], out: Path, jobs: int, launcher: str = "") -> list[Failure]:
    """Run what is not finished, ``jobs`` cells at a time; returns those that failed.

    Ctrl-C and SIGTERM stop the cells, which save first where they keep checkpoints.

    Raises:
        DataError: a folder holds a cell of the same name with other settings, or one trained on another text.
    """
    done = [cell for cell in cells if finished(out / cell.name, cell)]
    for cell in done:
        _require_same_text(out / cell.name, cell)
    waiting = [cell for cell in cells if cell not in done]
    failures: list[Failure] = []
    running: dict[str, subprocess.Popen[bytes]] = {}
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with progress("cells", total=len(cells), initial=len(cells) - len(waiting), unit="cell") as bar:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell.name] = _begin(cell, out / cell.name, launcher)
                time.sleep(POLL_SECONDS)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    failure = _end(name, running.pop(name), out / name)
                    if failure is not None:
                        failures.append(failure)
                        bar.write(f"failed: {failure.name}: {failure.message}", file=sys.stderr)
                    bar.update()
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(running)
    return failures


def _begin(cell: Cell, folder: Path, launcher: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(folder, cell)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(command(folder, launcher), stdout=log, stderr=log, env=environment)


def _end(name: str, process: subprocess.Popen[bytes], folder: Path) -> Failure | None:
    if process.returncode == 0 and (folder / RESULT).exists():
        return None
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.splitlines() if any(map(str.isalnum, line))]  # launchers end in a rule
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["no message"])[-1]
    return Failure(name, f"exit code {process.returncode}: {last.removeprefix('error: ')} (see {folder / 'log.txt'})")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _stop(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.terminate()
    for process in running.values():
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
