"""Is every host fit for the run? Facts are gathered from all at once, then judged; each finding has a remedy."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig

from .attempt import meeting_point
from .hosts import Host
from .job import Job
from .remote import Answer, Remote, on_all

FACTS_SECONDS = 30.0
"""Until a host that has not answered counts as one that hangs."""
DEVICE_SECONDS = 24.0
TOTAL_SECONDS = 57.0
"""Of the whole check; the all-reduce gets what the facts leave."""
ALL_REDUCE_MEGABYTES = 16
CLOCK_SECONDS = 2.0
"""Clocks that differ more make time limits, heartbeats and logs of hosts disagree."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one host."""

    check: str
    host: str
    good: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the hosts have to offer."""

    hosts: tuple[Host, ...]
    device: str
    folder: str
    """Working directory of the ranks."""
    shared: str
    """Folder below which the run folder lies, or will lie."""
    port: int
    """Where they are to meet; a free one of the first host, if the user asked for none."""
    address: str
    bytes_needed: int
    """Free disk that the planned checkpoints take."""
    first_port: int = 0
    """Where the search for ``port`` began, if there was one."""


def preflight(wanted: Wanted, remote: Remote) -> list[Finding]:
    """Check every host, then all together. Takes at most a minute, whatever hangs.

    The all-reduce is left out where a host has failed already: it could only fail, slowly.
    """
    names = [host.name for host in wanted.hosts]
    token, content = f".launch-check-{secrets.token_hex(4)}.tmp", secrets.token_hex(8)
    path = Path(wanted.shared) / token
    here = _write_token(path, content)
    begin, clock = time.time(), time.monotonic()
    try:
        answers = on_all(
            names,
            lambda name: remote.ask(name, "facts", _facts_task(wanted, name, token, content), FACTS_SECONDS),
        )
    finally:
        path.unlink(missing_ok=True)
    findings = [*here, *judge(wanted, answers, begin, time.time())]
    if all(finding.good for finding in findings):
        findings += all_reduce(wanted, remote, TOTAL_SECONDS - (time.monotonic() - clock))
    return findings


def of(config: RunConfig, job: Job, remote: Remote) -> list[Finding]:
    """``preflight`` of what ``job`` needs of its hosts."""
    run = Path(config.train.output_dir)
    address, port, _ = meeting_point(job, remote)
    wanted = Wanted(
        hosts=job.hosts,
        device=config.train.device,
        folder=job.folder,
        shared=str(existing_parent(run if run.is_absolute() else Path(job.folder) / run)),
        port=port,
        first_port=job.port,
        address=job.address or address or job.hosts[0].name,
        bytes_needed=bytes_planned(config),
    )
    return preflight(wanted, replace(remote, variables=environment_of(job.variables)))


def _facts_task(wanted: Wanted, host: str, token: str, content: str) -> dict[str, Any]:
    return {
        "folder": wanted.folder, "shared": wanted.shared, "token": token, "content": content, "host": host,
        "port": wanted.port, "device": wanted.device, "device_timeout": DEVICE_SECONDS,
    }  # fmt: skip


def _write_token(path: Path, content: str) -> list[Finding]:
    try:
        path.write_text(content, encoding="utf-8")
        return []
    except OSError as error:
        remedy = f"make {path.parent} writable, or choose another train.output_dir"
        return [Finding("shared folder", "here", False, f"cannot be written: {error.strerror}", remedy)]


def judge(wanted: Wanted, answers: dict[str, Answer], begin: float, end: float) -> list[Finding]:
    """Findings for every host from the facts that it gave.

    Args:
        answers: host -> what ``on_host.facts`` printed there.
        begin, end: when the questions were asked and answered, by this machine's clock.
    """
    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    for name, answer in answers.items():
        findings.append(_reachable(name, answer))
        if answer.value is not None:
            facts[name] = answer.value
    if not facts:
        return findings
    usual = {key: _usual(facts, key) for key in ("python", "torch", "deepspeed")}
    revision = Counter(str(_entry(one, "project", "revision")) for one in facts.values()).most_common(1)[0][0]
    slots = {host.name: host.slots for host in wanted.hosts}
    for position, (name, one) in enumerate(facts.items()):
        findings += [_version(name, key, _entry(one, "versions", key), usual[key]) for key in usual]
        findings.append(_project(name, one, revision, wanted.folder))
        if position == 0:
            findings.append(_port(name, one, wanted))
        findings += [
            _shared(name, one, wanted.shared),
            _disk(name, one, wanted.bytes_needed, wanted.shared),
            _devices(name, one, slots[name], wanted.device),
            _clock(name, one, begin, end),
        ]
    return findings


def _entry(one: dict[str, Any], section: str, key: str) -> Any:
    part = one.get(section)
    return part.get(key) if isinstance(part, dict) else None


def _usual(facts: dict[str, dict[str, Any]], key: str) -> str | None:
    """What most hosts have."""
    have = [found for one in facts.values() if (found := _entry(one, "versions", key)) is not None]
    return Counter(have).most_common(1)[0][0] if have else None


def _reachable(name: str, answer: Answer) -> Finding:
    if answer.value is not None:
        return Finding("reachable", name, True, "yes")
    remedy = (
        f"see that `ssh {name} true` works without a password, and that the Python of this run exists there at the "
        "same path"
    )
    return Finding("reachable", name, False, answer.error, remedy)


def _version(name: str, key: str, found: Any, usual: str | None) -> Finding:
    if found is not None and found == usual:
        return Finding(key, name, True, str(found))
    if found is None:
        return Finding(key, name, False, "missing", f"install {key} {usual or ''} there: launch/setup_env.sh")
    return Finding(key, name, False, f"{found}, other hosts have {usual}", f"install {key} {usual} there")


def _project(name: str, one: dict[str, Any], usual: str, folder: str) -> Finding:
    if not _entry(one, "project", "importable"):
        remedy = f"put this project at {folder} on that host, or share the folder"
        return Finding("project", name, False, f"not importable in {folder}", remedy)
    revision = str(_entry(one, "project", "revision"))
    if revision != usual:
        remedy = "check the same revision out on every host; '+' marks changed files"
        return Finding("project", name, False, f"revision {revision}, other hosts have {usual}", remedy)
    return Finding("project", name, True, f"revision {revision}" if revision != "None" else "no git revision")


def _port(name: str, one: dict[str, Any], wanted: Wanted) -> Finding:
    port = wanted.port
    if one.get("port_free") is True:
        moved = f"; {wanted.first_port} is taken" if wanted.first_port not in (0, port) else ""
        return Finding("port", name, True, f"{port} free{moved}")
    remedy = "give --master-port with a free one, or end what listens there"
    return Finding("port", name, False, f"{port} is taken", remedy)


def _shared(name: str, one: dict[str, Any], folder: str) -> Finding:
    if _entry(one, "shared", "visible") and _entry(one, "shared", "writable"):
        return Finding("shared folder", name, True, "seen and writable")
    error = _entry(one, "shared", "error")
    why = f" ({error})" if error else ""
    if not _entry(one, "shared", "visible"):
        remedy = f"mount the same file system at {folder} on every host, or choose another train.output_dir"
        return Finding("shared folder", name, False, f"a file written here is not seen in {folder}{why}", remedy)
    remedy = f"make {folder} writable there for the user who trains"
    return Finding("shared folder", name, False, f"{folder} is not writable{why}", remedy)


def _disk(name: str, one: dict[str, Any], needed: int, folder: str) -> Finding:
    free = _entry(one, "shared", "free_bytes")
    if free is None:
        return Finding("disk", name, True, "not known")  # the shared folder's finding says why
    if free >= needed:
        return Finding("disk", name, True, f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB planned")
    remedy = f"free space in {folder}, lower checkpoint.keep_last, or choose another train.output_dir"
    return Finding("disk", name, False, f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB planned", remedy)


def _devices(name: str, one: dict[str, Any], slots: int, wanted: str) -> Finding:
    if wanted == "cpu":
        return Finding("devices", name, True, "train.device is cpu")
    found = one.get("devices") or {}
    count, broken = found.get("count") or 0, found.get("broken") or {}
    remedy = "look at nvidia-smi and dmesg there; drain the host, or leave it out of the hostfile"
    if broken:
        which = "; ".join(f"GPU {index}: {why}" for index, why in broken.items())
        return Finding("devices", name, False, which, remedy)
    if found.get("error"):
        return Finding("devices", name, False, str(found["error"]), remedy)
    if count == 0 and wanted == "auto":
        return Finding("devices", name, True, "no GPU; train.device is auto, so the run uses the CPU")
    if count < slots:
        few = f"{count} GPU{'' if count == 1 else 's'}, {slots} slots"
        return Finding("devices", name, False, few, f"set slots={count} for it, or see why GPUs are missing")
    kinds = ", ".join(f"{number} x {kind}" for kind, number in Counter(found.get("names", [])).items())
    return Finding("devices", name, True, kinds)


def _clock(name: str, one: dict[str, Any], begin: float, end: float) -> Finding:
    """A clock is right if it showed, when asked, a time between question and answer."""
    told = float(one.get("time", 0.0))
    skew = max(0.0, begin - told, told - end)
    if skew <= CLOCK_SECONDS:
        return Finding("clock", name, True, "right" if skew == 0 else f"{skew:.1f} s off")
    return Finding("clock", name, False, f"{skew:.1f} s off this machine's", "run an NTP service there (chrony)")


def all_reduce(wanted: Wanted, remote: Remote, seconds: float) -> list[Finding]:
    """Sum a vector over one process per host within ``seconds``, and tell the time; names the hosts that could not."""
    names = [host.name for host in wanted.hosts]

    def ask(name: str) -> Answer:
        task = {
            "rank": names.index(name), "world": len(names), "address": wanted.address, "port": wanted.port,
            "device": wanted.device, "megabytes": ALL_REDUCE_MEGABYTES, "timeout": max(5.0, seconds - 10.0),
        }  # fmt: skip
        return remote.ask(name, "all_reduce", task, seconds)

    return judge_all_reduce(on_all(names, ask), wanted.address, wanted.port)


def judge_all_reduce(answers: dict[str, Answer], address: str, port: int) -> list[Finding]:
    """One finding per host that could not take part; one for all if all could."""
    findings = []
    for name, answer in answers.items():
        error = answer.error if answer.value is None else answer.value["error"]
        if error:
            remedy = (
                f"let hosts connect to each other on all ports above 1024 (this one to {address}:{port}), and name "
                "the network interface with --interface"
            )
            findings.append(Finding("all-reduce", name, False, error, remedy))
    if findings:
        return findings
    slowest = max(answer.value["seconds"] for answer in answers.values() if answer.value)
    speed = f"{ALL_REDUCE_MEGABYTES} MB in {slowest * 1000:.1f} ms"
    return [Finding("all-reduce", "all", True, f"{speed} over {len(answers)} host{'s' if len(answers) > 1 else ''}")]


def bytes_planned(config: RunConfig) -> int:
    """Disk that the checkpoints of a whole run take at most: those kept, and the one being written."""
    from pretrain.plan import blocks_of

    size = 0
    for block in blocks_of(config):
        for weight in block.weights:
            size += weight.stored * (13 if weight.aged else 12) + weight.mask_bytes
    size *= config.parallel.tensor
    saved = config.checkpoint
    saves = 1 + (config.train.steps // saved.interval if saved.interval else 0)
    kept = min(saves, saved.keep_last) if saved.keep_last else saves
    if saved.keep_every and saved.keep_last:
        kept += config.train.steps // saved.keep_every
    return size * (min(saves, kept) + 1)


def existing_parent(path: Path) -> Path:
    """The nearest folder above or at ``path`` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def table(findings: Sequence[Finding]) -> str:
    """Findings as text: good ones once per check and outcome, then each bad one with what to do."""
    lines = []
    for check in dict.fromkeys(finding.check for finding in findings):
        outcomes: dict[str, list[str]] = {}
        for finding in findings:
            if finding.check == check and finding.good:
                outcomes.setdefault(finding.found, []).append(finding.host)
        for found, names in outcomes.items():
            lines.append(f"ok    {check:<14} {_names(names):<24} {found}")
    for finding in findings:
        if not finding.good:
            lines.append(f"FAIL  {finding.check:<14} {finding.host:<24} {finding.found}")
            lines.append(f"{'':6}{'':<14} {'':<24} -> {finding.remedy}")
    bad = sum(not finding.good for finding in findings)
    lines.append(f"{bad} problem{'' if bad == 1 else 's'}" if bad else "every host is ready")
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain dicts."""
    return {"ready": all(one.good for one in findings), "findings": [asdict(one) for one in findings]}


def environment_of(variables: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What the programs over there need of the ranks' environment: one thread, and the network settings."""
    wanted = ("GLOO_", "NCCL_", "LD_LIBRARY_PATH", "UCX_", "FI_")
    return (("OMP_NUM_THREADS", "1"), *((k, v) for k, v in variables.items() if k.startswith(wanted)))
