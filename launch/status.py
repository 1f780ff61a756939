"""How a run is doing, from what it writes: progress, speed, checkpoints, restarts, spikes, topology, ranks."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from pretrain import outside
from pretrain.checkpoint.folder import MANIFEST, step_of
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import LaunchError
from pretrain.numbers import duration, so_far
from pretrain.run_folder import RunReader
from pretrain.run_folder.reader import METRICS, SETTINGS, TOPOLOGY

from .ends import STARTS, goes_on

RECENT = 50
"""Steps that speed and time left are estimated from."""
ALIVE_SECONDS = 60.0
"""A heartbeat older than this is that of a rank that has ended, or is lost."""


def status_of(folder: Path, now: float | None = None) -> dict[str, Any]:
    """All that ``report`` prints, as plain data. Seconds, steps and tokens; None where it is not known.

    Raises:
        LaunchError: ``folder`` is no run folder.
    """
    if not (folder / SETTINGS).is_file():
        raise LaunchError(f"{folder} holds no config.yaml, expected a run folder (train.output_dir of a run)")
    settings = read_yaml(folder / SETTINGS)
    now = time.time() if now is None else now
    run = RunReader(folder)
    metrics = run.tail(METRICS)
    noted = run.events()
    ranks = _ranks(run, now)
    total = _total(settings, folder)
    step = int(metrics[-1].get("step") or 0) if metrics else 0
    running = any(rank["alive_seconds"] <= ALIVE_SECONDS and rank["phase"] != "ended" for rank in ranks)
    why = next((str(event.get("why")) for event in reversed(noted) if event.get("kind") == "end"), None)
    orderly = why is not None and all(rank["phase"] == "ended" for rank in ranks)
    state = "running" if running else "done" if step >= total else "stopped" if orderly else "not running"
    hosts = len({rank["host"] for rank in ranks})
    return {
        "run": str(folder),
        "state": state,
        "why": why if state == "stopped" else None,
        "goes_on_with": goes_on(folder, settings, step, len(ranks), hosts, _launched(noted))
        if state in ("stopped", "not running")
        else None,
        "step": step,
        "steps": total,
        **_speed(metrics, total - step),
        "loss": metrics[-1].get("loss") if metrics else None,
        "tokens": metrics[-1].get("tokens") if metrics else 0,
        "checkpoint": _checkpoint(run, now),
        "restarts": sum(event.get("kind") == "restart" for event in noted),
        "events": dict(Counter(str(event.get("kind")) for event in noted)),
        "last_events": noted[-5:],
        "topology": _topology(run),
        "ranks": ranks,
        "laggard": _laggard(ranks),
    }


def _total(settings: dict[str, Any], folder: Path) -> int:
    section = settings.get("train")
    steps = section.get("steps") if isinstance(section, dict) else None
    if not isinstance(steps, int):
        raise LaunchError(f"{folder / 'config.yaml'} has no train.steps, expected the settings of a run")
    return steps


def _launched(noted: list[dict[str, Any]]) -> str | None:
    """How ``smet launch`` was called last; the file may be another's, so nothing else passes for it."""
    commands = [event.get("command") for event in noted if event.get("kind") == "launch"]
    command = str(commands[-1]) if commands and commands[-1] else ""
    try:
        words = tuple(shlex.split(command))
    except ValueError:
        return None
    return command if any(words[: len(start)] == start for start in STARTS) and command.isprintable() else None


def _speed(metrics: list[dict[str, Any]], left: int) -> dict[str, float | None]:
    recent = [record for record in metrics[-RECENT:] if record.get("step_seconds") is not None]
    if not recent:
        return {"seconds_left": None, "tokens_per_second": None, "step_seconds": None, "mfu": None}
    step_seconds = median(record["step_seconds"] for record in recent)
    return {
        "seconds_left": max(0, left) * step_seconds,
        "tokens_per_second": median(record.get("tokens_per_second") or 0.0 for record in recent),
        "step_seconds": step_seconds,
        "mfu": recent[-1].get("mfu"),  # of older runs, and of devices whose peak is not known, there is none
    }


def _checkpoint(run: RunReader, now: float) -> dict[str, Any] | None:
    found = run.checkpoints()
    if not found:
        return None
    age = now - (found[-1] / MANIFEST).stat().st_mtime
    return {"name": found[-1].name, "step": step_of(found[-1]), "age_seconds": max(0.0, age), "kept": len(found)}


def _topology(run: RunReader) -> dict[str, Any] | None:
    updates = run.tail(TOPOLOGY) or run.tail(TOPOLOGY, 1 << 22)  # a line of a deep model may be long
    if not updates:
        return None
    last = updates[-1]
    return {key: last.get(key) for key in ("step", "update", "fraction", "pruned", "grown", "recycled", "seconds")}


def _ranks(run: RunReader, now: float) -> list[dict[str, Any]]:
    found = []
    for rank, record in sorted(run.heartbeats().items()):
        since = {f"{key}_seconds": max(0.0, now - float(record.get(key) or 0.0)) for key in ("alive", "moved")}
        found.append({"rank": rank, **{k: record.get(k) for k in ("host", "pid", "step", "phase")}, **since})
    return found


def _laggard(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rank that all others wait for, if any: without a sign of life, or the longest without progress."""
    ranks = [rank for rank in ranks if rank["phase"] != "ended"]
    if len(ranks) < 2:
        return None
    if dead := [rank for rank in ranks if rank["alive_seconds"] > ALIVE_SECONDS]:
        return None if len(dead) == len(ranks) else max(dead, key=lambda rank: rank["alive_seconds"])
    slowest = max(ranks, key=lambda rank: (-(rank["step"] or 0), rank["moved_seconds"]))
    usual = median(rank["moved_seconds"] for rank in ranks)
    behind = (slowest["step"] or 0) < max(rank["step"] or 0 for rank in ranks)
    return slowest if behind or slowest["moved_seconds"] > 10.0 + 2.0 * usual else None


def report(status: dict[str, Any]) -> str:
    """For people."""
    step, steps = status["step"], status["steps"]
    share = f" ({step / max(1, steps):.1%})" if step <= steps else ""
    why = f" ({status['why']})" if status["why"] else ""
    lines = [f"{status['run']}: {status['state']}{why}, step {so_far(step, steps)}{share}"]
    if status["tokens_per_second"] is not None:
        left = duration(status["seconds_left"])
        ahead = f"{steps - step:,} steps to go, {left} at that speed"
        to_go = f"{left} left" if status["state"] == "running" else ahead
        lines.append(
            f"speed       {status['tokens_per_second']:,.0f} tokens/s, {status['step_seconds']:.2f} s per step"
            + (f", MFU {status['mfu']:.1%}" if status["mfu"] is not None else "")
            + (f", {to_go}" if steps > step else "")
        )
        lines.append(f"so far      {_count(status['tokens'])} tokens, loss {_number(status['loss'])}")
    saved = status["checkpoint"]
    lines.append(
        f"checkpoint  {saved['name']}, {duration(saved['age_seconds'])} old, {saved['kept']} kept"
        if saved
        else "checkpoint  none yet"
    )
    if status["goes_on_with"]:
        lines.append(f"to go on    {status['goes_on_with']}")
    if update := status["topology"]:
        moved = f": {_count(update['grown'])} tiles moved" if update["grown"] is not None else ""
        lines.append(f"topology    update {_count(update['update'])} after step {_count(update['step'])}{moved}")
    counts = [f"{number} x {kind}" for kind, number in status["events"].items()]
    lines.append(f"events      {', '.join(counts) or 'none'}")
    lines += [f"            {_event(event)}" for event in status["last_events"]]
    lines += _rank_lines(status)
    return outside.printable("\n".join(lines))  # events and heartbeats may be anybody's


def _rank_lines(status: dict[str, Any]) -> list[str]:
    ranks = status["ranks"]
    if not ranks:
        return ["ranks       no heartbeat"]
    hosts = Counter(rank["host"] for rank in ranks)
    lines = [f"ranks       {len(ranks)} on {len(hosts)} host{'s' if len(hosts) > 1 else ''}"]
    if slow := status["laggard"]:
        lines.append(
            f"            rank {slow['rank']} on {slow['host']} lags: step {slow['step']}, phase {slow['phase']}, "
            f"moved {duration(slow['moved_seconds'])} ago, last sign of life {duration(slow['alive_seconds'])} ago"
        )
    return lines


def _event(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(event.get("time", 0.0))))
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "kind"))
    return f"{when}  {event.get('kind')}: {rest}"[:160]


def _count(value: Any) -> str:
    return "unknown" if value is None else f"{value:,}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "not finite"
