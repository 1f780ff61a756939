"""Throughput of preprocessing against what the same number of bare tokenizer processes encode.

A bare process parses its share of the lines beforehand, in batches, and only the calls of the
tokenizer's own ``encode`` are timed: no reading, no writing, no start-up. Preprocessing is timed
as a whole command, from its start to its end. On a machine that does other work at the same time, only
the figures per processor second mean something.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from pretrain.data.tokenizers import load_tokenizer
from pretrain.errors import DataError
from pretrain.paths import why_no_file

from ..packages import ROOT, named
from .progress import progress

BATCH = 1000
"""Documents parsed ahead of each timed stretch."""
POLL_SECONDS = 0.05


def bench(path: str, tokenizer: str, workers: int, repeats: int) -> dict[str, Any]:
    """Run both ``repeats`` times in turns and compare the best of each.

    Args:
        path: JSON lines with a column ``text``.
        tokenizer: a SentencePiece ``.model`` or a ``tokenizer.json``.
        workers: processes on either side.
        repeats: runs of each.

    Returns:
        Megabytes of text per second on both sides and their ratio, by the clock and per processor second.

    Raises:
        DataError: the input or the tokenizer is missing, or preprocessing fails.
    """
    load_tokenizer(tokenizer)
    if not Path(path).is_file():
        raise DataError(f"input {path} {why_no_file(path)}; expected a file of JSON lines with a column 'text'")
    if workers < 1 or repeats < 1:
        raise DataError(f"--workers is {workers} and --repeats {repeats}, expected 1 or more of each")
    pairs = []
    with progress("bench", total=2 * repeats, unit="run") as bar:
        for _ in range(repeats):
            bare_run = _bare(path, tokenizer, workers)
            bar.update()
            pairs.append((bare_run, _preprocess(path, tokenizer, workers)))
            bar.update()
    bare = [max(pair[0][which] for pair in pairs) for which in range(2)]
    tool = [max(pair[1][which] for pair in pairs) for which in range(2)]
    return {
        "workers": workers,
        "repeats": repeats,
        "bare_megabytes_per_second": bare[0],
        "preprocess_megabytes_per_second": tool[0],
        "ratio": tool[0] / bare[0],
        "bare_megabytes_per_processor_second": bare[1],
        "preprocess_megabytes_per_processor_second": tool[1],
        "ratio_per_processor_second": tool[1] / bare[1],
    }


def _bare(path: str, tokenizer: str, workers: int) -> tuple[float, float]:
    """Sums over the processes: megabytes per second, and (their mean) per processor second."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = pool.starmap(_encode_share, [(path, tokenizer, number, workers) for number in range(workers)], 1)
    return sum(size / wall for size, wall, _ in done) / 1e6, sum(d[0] for d in done) / sum(d[2] for d in done) / 1e6


def _encode_share(path: str, tokenizer: str, number: int, workers: int) -> tuple[int, float, float]:
    """Bytes encoded, seconds and processor seconds spent in ``encode``."""
    encode = _bare_encode(tokenizer)
    size, wall, cpu = 0, 0.0, 0.0
    with open(path, "rb") as file:
        lines = islice(file, number, None, workers)
        while texts := [json.loads(line)["text"] for line in islice(lines, BATCH)]:
            started, started_cpu = time.perf_counter(), time.process_time()
            for text in texts:
                encode(text)
            wall += time.perf_counter() - started
            cpu += time.process_time() - started_cpu
            size += sum(len(text.encode()) for text in texts)
    return size, wall, cpu


def _bare_encode(tokenizer: str) -> Callable[[str], Any]:
    """The library's own call, without anything of ours around it."""
    if tokenizer.endswith(".json"):
        import tokenizers

        encode: Callable[[str], Any] = tokenizers.Tokenizer.from_file(tokenizer).encode
    else:
        import sentencepiece

        encode = sentencepiece.SentencePieceProcessor(model_file=tokenizer).encode
    return encode


def _preprocess(path: str, tokenizer: str, workers: int) -> tuple[float, float]:
    """The whole command: megabytes of text per second, and per processor second of all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", named("tools.preprocess"), "--input", os.path.abspath(path), "--json"]
        command += ["--tokenizer", os.path.abspath(tokenizer), "--output", f"{folder}/corpus"]
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, "--workers", str(workers)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process:
            cpu = _processor_seconds(process)
            wall = time.perf_counter() - started
            out, errors = process.communicate()
    if process.returncode:
        raise DataError((errors.strip().splitlines() or ["preprocessing failed"])[-1].removeprefix("error: "))
    size = json.loads(out)["text_bytes"] / 1e6
    return size / wall, size / cpu


def _processor_seconds(process: subprocess.Popen[str]) -> float:
    """Wait for a process and add up the processor time of it and of all its children, as last seen."""
    spent: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for one in [root, *root.children(recursive=True)]:
                times = one.cpu_times()
                spent[one.pid] = times.user + times.system
        except psutil.Error:
            # A process ended between the listing and the look.
            pass
        time.sleep(POLL_SECONDS)
    return sum(spent.values())
