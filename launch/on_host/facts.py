"""What a run needs of a host: versions, a port, the shared folder, disk, devices, the clock."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str | None]:
    """Python and packages; None where a package is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def project(folder: str) -> dict[str, Any]:
    """Whether the project can be imported from ``folder``, and its git revision, with a mark where files differ."""
    found: dict[str, Any] = {"importable": False, "revision": None}
    os.chdir(folder)
    sys.path.insert(0, folder)
    import importlib.util

    spec = importlib.util.find_spec("pretrain")
    if spec is None or spec.origin is None:
        return found
    found["importable"] = True
    root = str(Path(spec.origin).parent)
    # Another user's checkout on a shared folder is no danger here: git is only asked to read.
    git = ["git", "-c", "safe.directory=*", "-C", root]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, timeout=20)
        found["revision"] = revision.stdout.strip()[:12] + ("+" if changed.returncode else "")
    except (OSError, subprocess.SubprocessError):
        found["revision"] = None
    return found


def port_is_free(port: int) -> bool:
    """Whether the rendezvous could listen on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def shared(folder: str, token: str, content: str, host: str) -> dict[str, Any]:
    """Whether this host sees the file that the starting host wrote into ``folder``, and can write there itself."""
    found: dict[str, Any] = {"visible": False, "writable": False}
    try:
        found["visible"] = (Path(folder) / token).read_text(encoding="utf-8") == content
    except OSError as error:
        found["error"] = error.strerror
        return found
    own = Path(folder) / f"{token}.{host}.tmp"
    try:
        own.write_text(content, encoding="utf-8")
        own.unlink()
        found["writable"] = True
    except OSError as error:
        found["error"] = error.strerror
    found["free_bytes"] = shutil.disk_usage(folder).free
    return found


DEVICES = """
import json, torch
found = {"count": torch.cuda.device_count() if torch.cuda.is_available() else 0, "names": [], "broken": {}}
for index in range(found["count"]):
    try:
        found["names"].append(torch.cuda.get_device_name(index))
        matrix = torch.eye(256, device=f"cuda:{index}", dtype=torch.bfloat16)
        total = float((matrix @ matrix).float().sum())
        free, _ = torch.cuda.mem_get_info(index)
        if total != 256.0:
            found["broken"][index] = f"a product of unit matrices sums to {total}, expected 256"
        elif free < 0.9 * torch.cuda.get_device_properties(index).total_memory:
            found["broken"][index] = f"only {free / 1e9:.0f} GB of its memory are free: another process uses it"
    except RuntimeError as error:
        found["broken"][index] = str(error).splitlines()[0]
print(json.dumps(found))
"""
"""Runs in a process of its own: a broken driver may hang or kill it."""


def devices(wanted: str, timeout: float) -> dict[str, Any]:
    """GPUs, and what is wrong with each; only a run on GPUs asks."""
    if wanted == "cpu":
        return {"count": None, "names": [], "broken": {}}
    try:
        done = subprocess.run(
            [sys.executable, "-c", DEVICES], capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except subprocess.TimeoutExpired:
        return {"count": 0, "names": [], "broken": {}, "error": f"no answer from the driver within {timeout:.0f} s"}
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"count": 0, "names": [], "broken": {}, "error": last}


def guarded(ask: Callable[[], Any]) -> Any:
    """The answer, or ``{"error": ...}``: one question that fails leaves the others their answers."""
    try:
        return ask()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main(given: str) -> int:
    """Answer everything that the JSON task asks."""
    task = json.loads(given)
    print(
        json.dumps(
            {
                "time": time.time(),
                "hostname": socket.gethostname(),
                "versions": guarded(versions),
                "project": guarded(lambda: project(task["folder"])),
                "port_free": guarded(lambda: port_is_free(task["port"])),
                "shared": guarded(lambda: shared(task["shared"], task["token"], task["content"], task["host"])),
                "devices": guarded(lambda: devices(task["device"], task["device_timeout"])),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
