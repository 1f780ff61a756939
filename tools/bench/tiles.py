"""``python -m tools.bench tiles``: products over active tiles on this CPU, and whole steps, against dense ones."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from pretrain.command import program
from pretrain.errors import DataError
from pretrain.files import write_atomically
from pretrain.paths import path_argument
from smet.kernels import compiler, tiles_cpu

from . import machine, whole
from .card.products import PRODUCTS, Sides
from .card.settings import Case
from .spread import quartiles, ratios
from .tiles_page import screen

SHAPES = ((512, 512, 2048), (1376, 512, 2048), (2048, 2048, 2048), (512, 512, 512), (2048, 2048, 512))
"""Outputs, inputs, tokens: the 60m model's layers, 1b's, and the same with few tokens."""
TILES = ((8, 16), (16, 16), (32, 32), (64, 64), (128, 128))
DENSITIES = (0.1, 0.25, 0.5)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FEW_TILES, FEW_DENSITIES = ((8, 16), (16, 16), (32, 32)), (0.25, 0.1)
"""What is measured in fp32, and with dense products held to AVX-512."""
HOLD = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Read where torch is loaded: its products then leave the matrix unit alone."""
SECONDS = 1.0
"""A case is repeated for so long, at least three times: alternately dense and over tiles."""


PARTS = ("steps", "more", "products", "held")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 measured, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog=program(str(__package__), "tiles"),
        description="Whole training steps of two ranks of one thread over tiles, against dense ones, at 2,048 tokens "
        "(steps), and with other numbers of tokens and at density 0.5 (more). Forward, gradient of the input and "
        "gradient of the values over active tiles on this CPU, each against torch's product with the whole matrix "
        "(products): CPU time with one thread (other programs do not count), else wall time. Where there is a matrix "
        "unit (AMX), steps and products once more with both sides held to AVX-512 (held).",
    )
    parser.add_argument("--json", type=path_argument, help="write the result here, as it grows")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides' products (default: 1)")
    only = "measure only these, and keep what --json FILE has of the others (default: all)"
    parser.add_argument("--part", choices=PARTS, nargs="+", default=[], help=only)
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it works")
    given = parser.parse_args(arguments)
    if given.threads < 1:
        raise DataError(f"--threads is {given.threads}, expected 1 or more")
    if tiles_cpu.library() is None:
        raise DataError("products over tiles need AVX-512 and a C++ compiler; on this machine layers multiply densely")
    print(screen(measure(given.threads, given.quick, given.part or PARTS, given.json)))
    return 0


def measure(threads: int, quick: bool, parts: Sequence[str], path: Path | None = None) -> dict[str, Any]:
    """All of ``parts``; ``path`` gets what is there after each case, and what it had of other parts stays.

    Raises:
        DataError: it has some of another machine.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    result = _begun(threads, quick, parts, path)
    for part in PARTS:
        if part not in parts or (part == "held" and tiles_cpu.instructions() != "AMX"):
            continue
        begin, load, found = time.perf_counter(), machine.load(), []
        for one in _measured_part(part, threads, quick):
            found.append(one)
            result[part] = found if part != "held" else one
            result["measured"][part] = {
                "revision": machine.git_revision(), "load": [load, machine.load()],
                "seconds": time.perf_counter() - begin,
            }  # fmt: skip
            if path is not None:
                write_atomically(path, json.dumps(result, indent=1) + "\n")
    return result


def _begun(threads: int, quick: bool, parts: Sequence[str], path: Path | None) -> dict[str, Any]:
    """A result without anything of ``parts``."""
    begun: dict[str, Any] = {
        "kind": "tiles",
        "machine": {**machine.describe("cpu"), "tiles": tiles_cpu.instructions(), "dense": dense_uses()},
        "threads": threads, "quick": quick, "measured": {},
        "steps": [], "more": [], "products": [], "held": None,
    }  # fmt: skip
    del begun["machine"]["revision"]  # each part has its own
    if path is None or not path.exists() or set(parts) >= set(PARTS):
        return begun
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if [earlier.get(key) for key in ("machine", "threads", "quick")] != [
        begun[key] for key in ("machine", "threads", "quick")
    ]:
        raise DataError(f"{path} was measured on another machine, or in another way; give --json another file")
    return {**begun, **{key: earlier[key] for key in PARTS if key not in parts},
            "measured": {key: about for key, about in earlier["measured"].items() if key not in parts}}  # fmt: skip


def _measured_part(part: str, threads: int, quick: bool) -> Iterator[dict[str, Any]]:
    """What there is of a part, one by one."""
    if part in ("steps", "more"):
        yield from whole.measure(whole.settings(quick) if part == "steps" else whole.more(quick))
    elif part == "held":
        yield _held(threads, quick)
    else:
        held = compiler.can("amx_bf16") and tiles_cpu.instructions() != "AMX"  # fewer cases then
        for name, case in tqdm(list(_cases(quick, held)), desc="products", disable=None, file=sys.stderr):
            yield _measured(name, case, threads, quick)


def dense_uses() -> str:
    """What torch's own products in bf16 run on here."""
    if tiles_cpu.has_matrix_unit():
        return "AMX"
    return "AVX-512 BF16" if compiler.can("avx512_bf16") else "AVX-512"


def _held(threads: int, quick: bool) -> dict[str, Any]:
    """What a process finds whose products, over tiles and dense, are held to AVX-512."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = Path(folder, "held.json")
        command = [sys.executable, "-m", str(__package__), "tiles", "--part", "steps", "products"]
        command += ["--threads", str(threads), "--json", str(found), *(["--quick"] if quick else [])]
        done = subprocess.run(command, env={**os.environ, **HOLD}, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise DataError(f"measuring with products held to AVX-512 failed: {' '.join(command)}")
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return {key: result[key] for key in ("steps", "products")}


def _cases(quick: bool, held: bool = False) -> Iterator[tuple[str, Case]]:
    if quick:
        yield "bf16", (64, 64, 64, (32, 32), 0.25)
        if not held:
            yield "fp32", (64, 64, 64, (16, 16), 0.25)
        return
    for name in DTYPES:
        few = held or name == "fp32"
        for out, inputs, tokens in SHAPES:
            if few and tokens < 2048 or held and name == "fp32":
                continue
            for tile in FEW_TILES if few else TILES:
                if out % tile[0] == inputs % tile[1] == 0:
                    for density in FEW_DENSITIES if few else DENSITIES:
                        yield name, (out, inputs, tokens, tile, density)


def _measured(name: str, case: Case, threads: int, quick: bool) -> dict[str, Any]:
    clock = time.thread_time if threads == 1 else time.perf_counter
    sides = Sides(case, "cpu", DTYPES[name])
    errors = sides.errors()
    taken: dict[str, list[float]] = {f"{side} {product}": [] for product in PRODUCTS for side in ("dense", "tiles")}
    begin, rounds = time.perf_counter(), 0
    while rounds < 3 or (not quick and time.perf_counter() - begin < SECONDS):
        for product in PRODUCTS:
            for side, actions in (("dense", sides.dense), ("tiles", sides.tiles)):
                start = clock()
                actions[product]()
                taken[f"{side} {product}"].append(clock() - start)
        rounds += 1
    for side in ("dense", "tiles"):
        each = (taken[f"{side} {product}"] for product in PRODUCTS)
        taken[f"{side} all"] = [sum(times) for times in zip(*each, strict=True)]
    found = {}
    for product in (*PRODUCTS, "all"):
        values = ratios(taken[f"tiles {product}"], taken[f"dense {product}"])
        found[product] = {"median": median(values), "quartiles": list(quartiles(values))}
    out, inputs, tokens, tile, density = case
    return {
        "dtype": name, "out": out, "in": inputs, "tokens": tokens, "tile": list(tile), "density": density,
        "ratios": found, "errors": errors, "rounds": rounds,
        "milliseconds": {key: 1e3 * median(times) for key, times in taken.items() if key.endswith("all")},
    }  # fmt: skip
