"""Build the C++ kernels with the system's compiler, once per user, source, compiler and processor.

A build is one file in the user's cache, ``<source>-<key>-<digest>.so``. The key names everything the
build depends on, so a home folder shared by different hosts holds one build for each kind of host;
the digest is that of the file's content, so a damaged file is never loaded but built again. There
is no lock: processes that start together each build, and the last to finish replaces equal bytes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from smet.say import say

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
TIMEOUT = 300
"""Seconds after which a compiler is taken to hang."""

NATIVE = ("-march=native",)
COMMON = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-pthread",
    "-fno-math-errno", "-fno-trapping-math",  # nobody reads errno or traps here, and loops vectorise without them
    "-ffp-contract=off",  # the same roundings on every processor, and at every offset in a vector
)  # fmt: skip


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; the text says why in one line."""


def cache_folder() -> Path:
    """Where builds are kept: ``smet/kernels`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "smet", "kernels")


@functools.cache
def compiler() -> tuple[tuple[str, ...], str]:
    """The C++ compiler's command (``$CXX``, else c++, g++ or clang++) and the first line of its version.

    Raises:
        BuildError: there is none, or it does not run.
    """
    wanted = os.environ.get("CXX", "")
    commands = [shlex.split(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]
    command = next((c for c in commands if shutil.which(c[0])), None)
    if command is None:
        raise BuildError(f"no C++ compiler found (looked for {', '.join(c[0] for c in commands)})")
    return tuple(command), _run([*command, "--version"]).partition("\n")[0]


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise BuildError(f"{command[0]} failed: {lines[0].strip()}")
    return done.stdout


def processor() -> str:
    """What this processor is and can do, as the system tells it."""
    return f"{platform.machine()} {platform.processor()} {sorted(_told().items())}"


def model_name() -> str:
    """What this processor calls itself."""
    return _told().get("model name") or platform.processor() or platform.machine()


def can(flag: str) -> bool:
    """Whether this processor says that it has ``flag``, such as ``amx_bf16``."""
    return flag in _told().get("flags", "").split()


@functools.cache
def _told() -> dict[str, str]:
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in names:
                found.setdefault(name.strip(), value.strip())
    return found


def build(
    source: Path = SOURCE, folder: Path | None = None, machine: Sequence[str] = NATIVE, more: Sequence[str] = ()
) -> bytes:
    """The compiled kernels, from the cache or freshly built into it.

    Args:
        source: the C++ file, which may include headers whose names begin as its own does.
        folder: the cache; default ``cache_folder()``. If it cannot be written, nothing is kept.
        machine: flags that choose the instructions. A compiler that refuses them is asked without.
        more: flags that the source needs.

    Returns:
        The content of the shared library.

    Raises:
        BuildError: no compiler, or it failed.
    """
    folder = cache_folder() if folder is None else folder
    command, version = compiler()
    included = b"\0".join(path.read_bytes() for path in sorted(source.parent.glob(f"{source.stem}*.h")))
    inputs = (source.read_bytes(), included, repr((command, version, machine, _flags(more), processor())).encode())
    key = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    if (content := _cached(folder, f"{source.stem}-{key}")) is not None:
        return content
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        temporary = tempfile.mkdtemp(prefix=_BUILDING, dir=folder)
    except OSError:  # a read-only or full home: build for this process alone
        with tempfile.TemporaryDirectory(prefix="smet-kernels-") as private:
            return _compile([*command, *_flags(more)], source, machine, Path(private)).read_bytes()
    try:
        built = _compile([*command, *_flags(more)], source, machine, Path(temporary))
        content = built.read_bytes()
        with suppress(OSError):  # what is not kept is built again next time
            _publish(built, folder / f"{source.stem}-{key}-{_digest(content)}.so")
        return content
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_BUILDING = ".building-"
ABANDONED_AFTER = 3600.0
"""Seconds after which a build's folder is that of a process that was killed: compilers are given ``TIMEOUT`` twice."""


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed builds left. Ages are those of the file system, whose clock may be another host's."""
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=".now-", dir=folder) as now:
        latest = os.fstat(now.fileno()).st_mtime
        for left in folder.glob(f"{_BUILDING}*"):
            with suppress(OSError):  # others may be deleting it too
                if latest - left.lstat().st_mtime > ABANDONED_AFTER:
                    shutil.rmtree(left, ignore_errors=True)


def _flags(more: Sequence[str]) -> tuple[str, ...]:
    return (*COMMON, *more)


SAID_AFTER = 1.0
"""Seconds of a build after which it is said what is waited for."""


def _compile(command: Sequence[str], source: Path, machine: Sequence[str], folder: Path) -> Path:
    told = threading.Timer(
        SAID_AFTER, say, [f"smet: building {source.name} with {command[0]}; kept for later where there is room"]
    )
    told.daemon = True
    told.start()
    try:
        return _built(command, source, machine, folder)
    finally:
        told.cancel()


def _built(command: Sequence[str], source: Path, machine: Sequence[str], folder: Path) -> Path:
    target = folder / "cpu.so"
    try:
        _run([*command, *machine, str(source), "-o", str(target)])
    except BuildError:
        if not machine:
            raise
        _run([*command, str(source), "-o", str(target)])
    return target


def _publish(built: Path, target: Path) -> None:
    with open(built, "rb") as file:
        os.fsync(file.fileno())
    os.replace(built, target)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cached(folder: Path, name: str) -> bytes | None:
    for path in sorted(folder.glob(f"{name}-*.so")):
        with suppress(OSError):
            content = path.read_bytes()
            if path.stem.endswith(_digest(content)):
                return content
    return None


def optional(source: str, without: str | None = None) -> ctypes.CDLL | None:
    """The compiled ``source``, a file of this folder that uses OpenMP; None where it cannot be had, or is not wanted.

    Args:
        without: what is done then, for a warning that names the reason; None = other kernels have told that.
    """
    if os.environ.get("SMET_KERNELS") == "reference":
        return None
    try:
        return load(build(SOURCE.with_name(source), more=("-fopenmp",)))
    except BuildError as error:
        if without is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            log.warning("%s, because %s", without, error)
        return None


def load(content: bytes) -> ctypes.CDLL:
    """Load a shared library from memory.

    What was checked is what runs: a cache file that another host replaces meanwhile, or that lies
    on a file system mounted without execute permission, does no harm.

    Raises:
        BuildError: the system refuses to load it.
    """
    with suppress(OSError, AttributeError):  # not on every system, and forbidden on some
        return _load_from_memory(content)
    try:
        with tempfile.TemporaryDirectory(prefix="smet-kernels-") as private:
            path = Path(private, "cpu.so")
            path.write_bytes(content)
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled kernels do not load: {error}") from error


def _load_from_memory(content: bytes) -> ctypes.CDLL:
    descriptor = os.memfd_create("smet-kernels")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        # Stays open: the loader takes a path that it has seen before for the library it found there then.
        return ctypes.CDLL(f"/proc/{os.getpid()}/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise
