"""Two worker processes that share a list of cases."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2

Case = dict[str, Any]
Answer = dict[str, Any]


def run_all(cases: Iterable[Case], prepare: Callable[[Case], None], seconds: float) -> list[tuple[Case, Answer]]:
    """(case, answer) of all cases of one module; ``prepare`` makes a case's folder just before it runs.

    Args:
        seconds: what a case may take.
    """
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    module = ""
    for case in cases:
        waiting.put(case)
        module = case["module"]
    results: list[tuple[Case, Answer]] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with _worker(module) as worker:
                while not waiting.empty():
                    case = waiting.get_nowait()
                    prepare(case)
                    results.append((case, _ask(worker, {**case, "seconds": seconds})))
        except queue.Empty:
            return
        except BaseException as error:  # a fault of the sweep itself is told by the thread that waits
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return sorted(results, key=lambda pair: int(pair[0]["number"]))


def _worker(module: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.worker", module],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _ask(worker: subprocess.Popen[str], case: Case) -> Answer:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps(case) + "\n")
    worker.stdin.flush()
    answer: Answer = json.loads(worker.stdout.readline())
    return answer
