"""``python -m tools.bench tiles``: products over active tiles on this CPU, and whole steps, against dense ones."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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

SHAPES = ((512, 512, 2048), (1376, 512, 2048), (2048, 2048, 2048), (512, 512, 512), (2048, 2048, 512))
"""Outputs, inputs, tokens: the 60m model's layers, 1b's, and the same with few tokens."""
TILES = ((8, 16), (16, 16), (32, 32), (64, 64), (128, 128))
DENSITIES = (0.1, 0.25, 0.5)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FEW_TILES, FEW_DENSITIES = ((16, 16), (32, 32)), (0.25, 0.1)
"""What is measured in fp32, and with dense products held to AVX-512."""
HOLD = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Read where torch is loaded: its products then leave the matrix unit alone."""
SECONDS = 1.0
"""A case is repeated for so long, at least three times: alternately dense and over tiles."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 measured, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog=program(str(__package__), "tiles"),
        description="Forward, gradient of the input and gradient of the values over active tiles on this CPU, each "
        "against torch's product with the whole matrix in the same run. CPU time with one thread (other programs do "
        "not count), else wall time. Then whole training steps of two ranks of one thread. Where there is a matrix "
        "unit (AMX), all of that once more with both sides held to AVX-512.",
    )
    parser.add_argument("--json", type=path_argument, help="write the result here, as it grows")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides (default: 1)")
    parser.add_argument("--part", choices=("products", "steps"), help="measure only these (default: both)")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it works")
    given = parser.parse_args(arguments)
    if given.threads < 1:
        raise DataError(f"--threads is {given.threads}, expected 1 or more")
    if tiles_cpu.library() is None:
        raise DataError("products over tiles need AVX-512 and a C++ compiler; on this machine layers multiply densely")
    result = measure(given.threads, given.quick, given.part, given.json)
    print(screen(result))
    return 0


def measure(threads: int, quick: bool, part: str | None, path: Path | None = None) -> dict[str, Any]:
    """All that was asked for; ``path`` gets what is there after each case.

    Args:
        part: ``products``, ``steps``, or None for both.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    begin = time.perf_counter()
    unit = tiles_cpu.instructions() == "AMX"
    held = not unit and compiler.can("amx_bf16")  # fewer cases then
    result: dict[str, Any] = {
        "kind": "tiles",
        "machine": {**machine.describe("cpu"), "tiles": tiles_cpu.instructions(), "dense": dense_uses()},
        "threads": threads, "quick": quick, "load": [machine.load()], "rows": [], "steps": [], "held": None,
    }  # fmt: skip

    def publish() -> None:
        result["seconds"] = time.perf_counter() - begin
        if path is not None:
            _publish(result, path)

    for name, case in tqdm(
        list(_cases(quick, held)) if part != "steps" else [], desc="products", disable=None, file=sys.stderr
    ):
        result["rows"].append(_measured(name, case, threads, quick))
        publish()
    for found in whole.measure(quick) if part != "products" else ():
        result["steps"].append(found)
        publish()
    if unit:
        result["held"] = _held(threads, quick, part)
    result["load"].append(machine.load())
    publish()
    return result


def dense_uses() -> str:
    """What torch's own products in bf16 run on here."""
    if tiles_cpu.has_matrix_unit():
        return "AMX"
    return "AVX-512 BF16" if compiler.can("avx512_bf16") else "AVX-512"


def _held(threads: int, quick: bool, part: str | None) -> dict[str, Any]:
    """What a process finds whose products, over tiles and dense, are held to AVX-512."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = Path(folder, "held.json")
        command = [sys.executable, "-m", str(__package__), "tiles", "--threads", str(threads), "--json", str(found)]
        command += [*(["--part", part] if part else []), *(["--quick"] if quick else [])]
        done = subprocess.run(command, env={**os.environ, **HOLD}, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise DataError(f"measuring with products held to AVX-512 failed: {' '.join(command)}")
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return {key: result[key] for key in ("rows", "steps")}


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


def _publish(result: dict[str, Any], path: Path) -> None:
    write_atomically(path, json.dumps(result, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Cases as a Markdown table, times over tiles by those of the whole matrix."""
    lines = [
        "| type | out x in | tokens | tile | density | forward | input gradient | values gradient | all three | "
        "quartiles | dense ms | error |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        each = " | ".join(f"{row['ratios'][product]['median']:.3f}" for product in (*PRODUCTS, "all"))
        low, high = row["ratios"]["all"]["quartiles"]
        lines.append(
            f"| {row['dtype']} | {row['out']} x {row['in']} | {row['tokens']:,} | {row['tile'][0]} x {row['tile'][1]} "
            f"| {row['density']:g} | {each} | {low:.3f} to {high:.3f} | {row['milliseconds']['dense all']:.1f} | "
            f"{max(row['errors'].values()):.1e} |"
        )
    return "\n".join(lines)


def screen(result: dict[str, Any]) -> str:
    """What was measured, in tables under headings."""
    at, held = result["machine"], result["held"] or {"rows": [], "steps": []}
    parts = [
        (f"## Products, dense on {at['dense']}, over tiles on {at['tiles']}", table, result["rows"]),
        (f"## Whole steps, dense on {at['dense']}, over tiles on {at['tiles']}", whole.table, result["steps"]),
        ("## Products, both held to AVX-512 BF16", table, held["rows"]),
        ("## Whole steps, both held to AVX-512 BF16", whole.table, held["steps"]),
    ]
    return "\n\n".join(f"{heading}\n\n{shown(found)}" for heading, shown, found in parts if found)


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    at = result["machine"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    trial = " (a test run: sizes are tiny, times mean nothing)" * result["quick"]
    return (
        f"# Products over active tiles on a CPU{trial}\n\n"
        "This page is made by `python -m tools.bench render RESULT.json PAGE.md` from the result of `python -m "
        "tools.bench tiles --json RESULT.json`. Each figure of products is the time over active tiles by the time of "
        "torch's product with the whole matrix, alternately in one run (medians; quartiles of all three together); "
        "below 1 tiles are faster. *Error* is the largest relative one against fp32, in the Frobenius norm. Whole "
        "steps are those of engines that take turns in the same two ranks of one thread: bf16, ZeRO-2, 2,048 tokens "
        "per rank, against ordinary layers with torch's fused AdamW; who multiplies is what `sparsity.compute: auto` "
        "measured at its start.\n\n"
        f"Machine: {at['processor']}, {at['cores']} cores; products over tiles on {at['tiles']}, torch's dense ones on "
        f"{at['dense']} (bf16); torch {at['torch']}, DeepSpeed {at['deepspeed']}; {threads}; revision "
        f"{at['revision']}; load {result['load'][0]} before and {result['load'][-1]} after; {result['seconds']:.0f} s "
        "in all.\n\n"
        f"{screen(result)}\n"
    )
