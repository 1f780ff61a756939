"""``python -m tools.bench gpu``: the sections in turn, each written to the result as soon as it is done."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain.command import program
from pretrain.errors import ConfigError, LaunchError, nearest
from pretrain.files import write_atomically
from pretrain.numbers import finite
from pretrain.paths import path_argument

from ...packages import ROOT, named
from .. import machine
from . import page
from .page import SECTIONS

if TYPE_CHECKING:
    from .settings import Sizes

SHARE = {"products": 0.4}
"""Of the time that is left when it begins; other sections take what they need."""
NEEDED = 60.0
"""Seconds that one model's training, or the tests, may take; they are not begun with fewer left."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 whatever was measured, 2 bad input."""
    parser = argparse.ArgumentParser(prog=program(named("tools.bench"), "gpu"), description=__doc__)
    parser.add_argument(
        "--json", type=path_argument, metavar="FILE", required=True, help="where the result goes, bit by bit"
    )
    parser.add_argument("--seconds", type=finite, default=540, help="what does not fit is left out; default 540")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, with commas; default all of them")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: does it run, not how fast")
    given = parser.parse_args(arguments)
    wanted = given.sections.split(",")
    for name in wanted:
        if name not in SECTIONS:
            raise ConfigError(f"--sections: '{name}' is none of {', '.join(SECTIONS)}{nearest(name, SECTIONS)}")
    if not os.access(given.json.absolute().parent, os.W_OK):
        raise LaunchError(f"--json {given.json}: its folder does not exist or cannot be written; create it first")
    if given.rehearse:
        os.environ.update({"TRITON_INTERPRET": "1", "SMET_COMPUTE": "tiles", "DS_ACCELERATOR": "cpu"})
    elif not torch.cuda.is_available():
        raise LaunchError("no GPU is visible; --rehearse runs everything at tiny sizes on the CPU")
    from ..ranks import quiet
    from .settings import on_a_cpu, on_a_gpu

    quiet()
    result = Session(on_a_cpu() if given.rehearse else on_a_gpu(), given.json, given.seconds).measure(wanted)
    print(page.page(result))
    return 0


class Session:
    """One run of the command.

    Args:
        sizes: what is measured.
        path: where the result is written after every section.
        limit: seconds in all.
    """

    def __init__(self, sizes: Sizes, path: Path, limit: float):
        self.sizes, self.path = sizes, path
        self.begun = time.monotonic()
        self.end = self.begun + limit
        self.result: dict[str, Any] = {
            "kind": "gpu", "date": date.today().isoformat(), "rehearsal": sizes.rehearsal, "limit": limit,
            "machine": machine.describe(sizes.device), "memory": _memory(sizes.device), "sections": {}, "failed": {},
            "left_out": [], "took": {},
        }  # fmt: skip

    def measure(self, wanted: list[str]) -> dict[str, Any]:
        """The whole result; sections that fail say why, and the next one follows."""
        for name in SECTIONS:
            if name in wanted:
                begin = time.monotonic()
                self._section(name, getattr(self, f"_{name}"))
                self.result["took"][name] = time.monotonic() - begin
        self.publish()
        return self.result

    def publish(self) -> None:
        """Write what there is."""
        self.result["seconds"] = time.monotonic() - self.begun
        write_atomically(self.path, json.dumps(self.result, indent=1) + "\n")

    def _section(self, name: str, measure: Callable[[], Any]) -> None:
        if time.monotonic() > self.end - (NEEDED if name == "tests" and not self.sizes.rehearsal else 0):
            self.result["left_out"].append(name)
            return
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            self.result["sections"][name] = measure()
        except Exception as error:  # whatever goes wrong on an unknown card: the others are measured all the same
            self._note(name, error)
        self.publish()

    def _note(self, name: str, error: Exception) -> None:
        traceback.print_exc()
        self.result["failed"][name] = f"{type(error).__name__}: {error}"[-2000:]

    def _tests(self) -> dict[str, Any]:
        """The tests that need a GPU; on a CPU those are none, and their number is."""
        if not (ROOT / "tests").is_dir():
            raise LaunchError("the tests are in the checkout, and not installed with the project")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/smet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * NEEDED)
        counts = dict(re.findall(r"(\d+) (passed|failed|error)", done.stdout.rpartition("\n=")[2] or done.stdout))
        return {
            "passed": _count(counts, "passed"), "failed": _count(counts, "failed") + _count(counts, "error"),
            "output": done.stdout[-3000:] if done.returncode not in (0, 5) else "",
        }  # fmt: skip

    def _kernels(self) -> dict[str, Any]:
        from . import moves

        return moves.measure(self.sizes)

    def _formulas(self) -> dict[str, Any]:
        from . import formulas

        return formulas.measure(self.sizes)

    def _products(self) -> dict[str, Any]:
        from . import products

        def publish(rows: list[dict[str, Any]]) -> None:
            self.result["sections"]["products"] = {"rows": rows, "left_out": None, "configurations": {}}
            self.publish()

        left = self.end - time.monotonic()
        found = products.measure(self.sizes, time.monotonic() + SHARE["products"] * left, publish)
        if found["left_out"]:
            self.result["left_out"].append(f"{found['left_out']} cases of products")
        if self.sizes.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def _training(self) -> list[dict[str, Any]]:
        from . import training

        found: list[dict[str, Any]] = []
        for setting in self.sizes.settings:
            name = f"{setting.title}, ZeRO-{setting.zero_stage}"
            if self.end - time.monotonic() < (0 if self.sizes.rehearsal else NEEDED):
                self.result["left_out"].append(name)
                continue
            try:
                found.append(training.measure(setting))
            except Exception as error:  # as above
                self._note(name, error)
            self.result["sections"]["training"] = found
            self.publish()
        return found

    def _resume(self) -> dict[str, Any]:
        from . import resume

        return resume.measure(self.sizes.resumed)


def _count(counts: dict[str, str], word: str) -> int:
    return next((int(number) for number, kind in counts.items() if kind == word), 0)


def _memory(device: str) -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
