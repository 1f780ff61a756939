"""Finds the processes of one attempt on this host by their environment, and sends them a signal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path


def environment(pid: int) -> dict[str, str]:
    """Environment that a process was started with; empty where it is gone or not ours."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in raw.decode(errors="replace").split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def parent(pid: int) -> int:
    """Parent of a process; 0 where it is gone."""
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        )
    except (OSError, IndexError, ValueError):
        return 0


def network(pid: int) -> str:
    """Network namespace: hosts made of those share their process numbers."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def rank_of(variables: dict[str, str]) -> str | None:
    """The rank that a launcher gave a process, or None: then it is part of the launcher."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        if name in variables:
            return variables[name]
    return None


def members(launch_id: str) -> dict[int, str | None]:
    """pid -> rank (None: a launcher) of the processes of this host that carry ``launch_id``."""
    here = network(os.getpid())
    found: dict[int, str | None] = {}
    for entry in Path("/proc").iterdir():
        pid = int(entry.name) if entry.name.isdigit() else 0
        if not pid or pid == os.getpid():
            continue
        variables = environment(pid)
        if variables.get("SMET_LAUNCH_ID") == launch_id and network(pid) == here:
            found[pid] = rank_of(variables)
    return found


def ranks(found: dict[int, str | None]) -> list[int]:
    """The processes that are ranks, without the workers that these have started."""
    return sorted(pid for pid, rank in found.items() if rank is not None and found.get(parent(pid)) is None)


def send(launch_id: str, number: int, everything: bool, already: list[int]) -> list[int]:
    """Signal the ranks, or everything, of an attempt, but those in ``already``; returns whom."""
    found = members(launch_id)
    reached = []
    for pid in sorted(found) if everything else ranks(found):
        if pid not in already:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
                reached.append(pid)
    return reached


def main(given: str) -> int:
    """``{"id": ..., "signal": "SIGTERM", "everything": false, "already": [pids]}``; prints ``{"pids": [...]}``."""
    task = json.loads(given)
    number = signal.Signals[task["signal"]]
    print(json.dumps({"pids": send(task["id"], number, task["everything"], task["already"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
