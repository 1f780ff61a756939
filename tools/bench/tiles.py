"""``python -m tools.bench tiles``: products over active tiles on this CPU against torch's dense ones."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from pretrain.errors import DataError
from pretrain.files import write_atomically
from pretrain.paths import path_argument
from smet.kernels import tiles_cpu
from tools.bench import machine
from tools.bench.card.products import PRODUCTS, Sides
from tools.bench.card.settings import Case
from tools.bench.spread import quartiles, ratios

SHAPES = ((512, 512, 2048), (1376, 512, 2048), (2048, 2048, 2048), (512, 512, 512), (2048, 2048, 512))
"""Outputs, inputs, tokens: the 60m model's layers, 1b's, and the same with few tokens."""
TILES = ((8, 16), (16, 16), (32, 32), (64, 64), (128, 128))
DENSITIES = (0.1, 0.25, 0.5)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SECONDS = 1.5
"""A case is repeated for so long, at least three times: alternately dense and over tiles."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 measured, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench tiles",
        description="Forward, gradient of the input and gradient of the values over active tiles on this CPU, each "
        "against torch's product with the whole matrix in the same run. CPU time with one thread (other programs do "
        "not count), else wall time.",
    )
    parser.add_argument("--json", type=path_argument, help="write the result here, as it grows")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it works")
    given = parser.parse_args(arguments)
    if given.threads < 1:
        raise DataError(f"--threads is {given.threads}, expected 1 or more")
    if tiles_cpu.library() is None:
        raise DataError("products over tiles need AVX-512 and a C++ compiler; on this machine layers multiply densely")
    result = measure(given.threads, given.quick, given.json)
    if given.json is not None:
        _publish(result, given.json)
    print(table(result))
    return 0


def measure(threads: int, quick: bool, path: Path | None = None) -> dict[str, Any]:
    """All cases; ``path`` gets what is there after each."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cases = list(_cases(quick))
    result: dict[str, Any] = {
        "kind": "tiles", "machine": {**machine.describe("cpu"), "tiles": tiles_cpu.instructions()},
        "threads": threads, "load": [machine.load()], "rows": [],
    }  # fmt: skip
    for name, case in tqdm(cases, desc="products", disable=None, file=sys.stderr):
        result["rows"].append(_measured(name, case, threads, quick))
        if path is not None:
            _publish(result, path)
    result["load"].append(machine.load())
    return result


def _cases(quick: bool) -> Iterator[tuple[str, Case]]:
    if quick:
        yield from (("fp32", (64, 64, 64, (16, 16), 0.25)), ("bf16", (64, 64, 64, (32, 32), 0.25)))
        return
    for name in DTYPES:
        for out, inputs, tokens in SHAPES:
            for tile in TILES:
                if out % tile[0] == inputs % tile[1] == 0:
                    yield from ((name, (out, inputs, tokens, tile, density)) for density in DENSITIES)


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


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, times over tiles by those of the whole matrix."""
    lines = [
        "| type | out x in | tokens | tile | density | forward | input gradient | values gradient | all three | "
        "quartiles | dense ms | error |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in result["rows"]:
        each = " | ".join(f"{row['ratios'][product]['median']:.3f}" for product in (*PRODUCTS, "all"))
        low, high = row["ratios"]["all"]["quartiles"]
        lines.append(
            f"| {row['dtype']} | {row['out']} x {row['in']} | {row['tokens']:,} | {row['tile'][0]} x {row['tile'][1]} "
            f"| {row['density']:g} | {each} | {low:.3f} to {high:.3f} | {row['milliseconds']['dense all']:.1f} | "
            f"{max(row['errors'].values()):.1e} |"
        )
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    at = result["machine"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return (
        "# Products over active tiles on a CPU\n\n"
        "This page is made by `python -m tools.bench render RESULT.json PAGE.md` from the result of `python -m "
        "tools.bench tiles --json RESULT.json`. Each figure is the time of a product over active tiles by the time of "
        "torch's product with the whole matrix, alternately in one run (medians; quartiles of all three together); "
        "below 1 tiles are faster. *Error* is the largest relative one against fp32, in the Frobenius norm.\n\n"
        f"Machine: {at['processor']}, {at['cores']} cores, {at['tiles']}; torch {at['torch']}; {threads}; revision "
        f"{at['revision']}; load {result['load'][0]} before and {result['load'][-1]} after.\n\n"
        f"{table(result)}\n"
    )
