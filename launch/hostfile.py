"""Hostfiles as DeepSpeed, OpenMPI and batch systems write them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain import outside
from pretrain.errors import LaunchError, nearest

from .hosts import Host

SLOTS = ("slots", "slot", "cpus", "cpu", "count")
"""OpenMPI's words for how many ranks a host takes."""
BOUNDS = ("max_slots", "max-slots")
"""Its words for the most that it may ever take."""
UNUSED = ("boards", "sockets", "sockets_per_board", "cores", "cores_per_socket")
"""What else it says about a host; a start does not depend on it."""
USERS = ("user", "username")

_COMMENT = re.compile(r"#.*|//.*")
_PAIR = re.compile(r"([\w-]+)\s*=\s*(\S+)")
_EXPECTED = "expected 'NAME slots=N' with N of 1 or more"


def read_hostfile(path: Path, per_host: int | None = None) -> tuple[Host, ...]:
    """Hosts of a file with lines ``NAME slots=N``, as DeepSpeed and OpenMPI read it.

    A name alone is one slot where it stands on several lines, as batch systems list their hosts; a single one takes
    ``per_host``. OpenMPI's other words are read; one line on stderr names those that change nothing.

    Raises:
        LaunchError: it is missing, empty, or has a line of another form.
    """
    try:
        text = outside.read_bytes(path, outside.MEGABYTE).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--hostfile {path} cannot be read ({error}); see launch/templates/hostfile") from None
    found: dict[str, int | None] = {}
    bare: dict[str, int] = {}
    unused: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        line = _COMMENT.sub("", line).strip()
        if not line:
            continue
        where = f"{path} line {number}"
        name, slots = _read_line(line, where, unused)
        if name in found and (slots is not None or name not in bare):
            raise LaunchError(f"{where} names {name} again, expected each host once")
        if slots is None:
            bare[name] = bare.get(name, 0) + 1
        found[name] = slots
    if not found:
        raise LaunchError(f"{path} names no host, expected lines 'NAME slots=N'; see launch/templates/hostfile")
    if unused:
        print(f"note: {path}: {', '.join(sorted(unused))} change nothing in a start", file=sys.stderr, flush=True)
    return tuple(Host(name, slots or _of_bare(name, bare, per_host, path)) for name, slots in found.items())


def _of_bare(name: str, bare: dict[str, int], per_host: int | None, path: Path) -> int:
    """Ranks of a host that the file only names."""
    if max(bare.values()) > 1:
        return bare[name]
    if per_host is None:
        raise LaunchError(
            f"{path} does not say how many ranks {name} takes, {_EXPECTED}; or give --gpus-per-node N for all hosts"
        )
    return per_host


def _read_line(line: str, where: str, unused: set[str]) -> tuple[str, int | None]:
    """Name and slots (None: not said) of one line without comment; words that change nothing go to ``unused``."""
    name, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    if re.match(r"[\^+]|.*=", name):
        raise LaunchError(f"{where} is '{line}', {_EXPECTED}; ^NAME and +nN are for mpirun alone: name the hosts")
    short = re.fullmatch(r"([^:]+):(\d+)", name)  # MPICH's NAME:N
    values: dict[str, int] = {}
    if short:
        name, values["slots"] = short[1], int(short[2])
    if _PAIR.sub("", rest).strip():
        raise LaunchError(f"{where} is '{line}', {_EXPECTED}")
    for key, text in _PAIR.findall(rest):
        if key in UNUSED:
            unused.add(key)
            continue
        if key in USERS:
            raise LaunchError(f"{where} names a user; expected that in ssh's own settings, or --ssh-args '-l {text}'")
        if key not in SLOTS + BOUNDS:
            known = (*SLOTS, *BOUNDS, *UNUSED)
            raise LaunchError(f"{where} has the word '{key}'{nearest(key, known)}, {_EXPECTED}")
        kind = "slots" if key in SLOTS else "max_slots"
        if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0 or kind in values:
            raise LaunchError(f"{where} is '{line}', {_EXPECTED}")
        values[kind] = int(text)
    if values.get("slots") == 0:
        raise LaunchError(f"{where} is '{line}', {_EXPECTED}")
    slots, bound = values.get("slots"), values.get("max_slots")
    if slots is not None and bound is not None and slots > bound:
        raise LaunchError(f"{where} has slots={slots} and max_slots={bound}, expected slots within max_slots")
    return name, slots


def render_hostfile(hosts: Sequence[Host]) -> str:
    """The text that ``read_hostfile`` reads back, and DeepSpeed and OpenMPI too."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)
