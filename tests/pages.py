"""Pages of documentation as tests see them: their code blocks, and their commands run as a reader would."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of one language on a page of the project, such as ``docs/data.md``."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every line of a page's shell blocks."""
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


def link_checkout(folder: Path) -> None:
    """Put the project's packages and settings into ``folder``, as a fresh clone has them."""
    for name in ("smet", "pretrain", "launch", "tools", "configs"):
        (folder / name).symlink_to(ROOT / name)


@functools.cache
def scripts() -> Path:
    """A folder with the command ``smet`` of this checkout, whatever is installed."""
    folder = Path(tempfile.mkdtemp(prefix="scripts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "smet").write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [{str(ROOT)!r}, os.environ.get('PYTHONPATH')]))\n"
        "if __name__ == '__main__':  # workers import this file again\n"
        "    from tools.__main__ import smet\n\n    smet()\n"
    )
    (folder / "smet").chmod(0o755)
    return folder


def run(command: list[str], folder: Path, **environ: str) -> str:
    """Run a command in ``folder``, with an activated environment; it has to succeed, and leaves no process behind.

    Returns what it printed.

    Args:
        command: what to run.
        folder: where.
        environ: further variables.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    kept["PATH"] = os.pathsep.join([str(scripts()), str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        command, cwd=folder, env={**kept, "OMP_NUM_THREADS": "1", **environ}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, _ = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{command[-1]}\n{out}"
    return out
