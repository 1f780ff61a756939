"""Runs cases, each in a fork of this process, so that imports are paid once: ``python -m tests.sweep.worker``.

A line of JSON in, a line of JSON out. A fork leaves nothing behind for the next case, and may die or hang.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Call ``main(argv)`` of ``case["module"]`` in ``case["folder"]/in``, with both streams in files.

    Returns ``out``, ``err`` and ``code`` (None where an exception came out); or ``died`` or ``hung`` with the streams.
    """
    folder = Path(case["folder"])
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(_child(folder, case))
    end = _wait(child, case["seconds"])
    code = folder / "code"
    answer: dict[str, Any] = {}
    if end is None:
        answer["hung"] = case["seconds"]
    elif end != 0 or not code.exists():
        answer["died"] = end
    else:
        answer["code"] = json.loads(code.read_text())
    for name in ("out", "err"):
        path = folder / name
        answer[name] = path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""
    return answer


def _child(folder: Path, case: dict[str, Any]) -> int:
    os.chdir(folder / "in")
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = _call(case["module"], case["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "code").write_text(json.dumps(code))
    return 0


def _call(module: str, argv: list[str]) -> int | None:
    try:
        code = importlib.import_module(module).main(list(argv))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return None
    return int(code or 0)


def _wait(child: int, seconds: float) -> int | None:
    """The child's exit code, negative for a signal; None, and an end to it and its children, if it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    """Until the lines end."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
