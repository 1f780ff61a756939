"""Which environment variables reach the ranks: those listed here and those asked for, never the rest.

DeepSpeed's launchers over ssh carry what its environment file (``.deepspeed_env``) holds; we write that file anew for
every start, from the user's own files of that name, this process's environment, and ``--env``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pretrain import outside
from pretrain.errors import LaunchError

CARRIED = (
    "NCCL_*", "GLOO_*", "TORCH_*", "TORCHINDUCTOR_*", "PYTORCH_*", "CUDA_DEVICE_*", "CUDA_HOME", "CUDA_MODULE_LOADING",
    "OMP_*", "MKL_NUM_THREADS", "UCX_*", "FI_*", "TRITON_*", "SMET_*", "DS_ACCELERATOR", "DS_LOG_LEVEL", "HF_HOME",
    "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH",
)  # fmt: skip
"""Names, and beginnings of names, that are carried where they are set. Keys and passwords only go with ``--env``."""

FILE = ".deepspeed_env"
LAUNCH_ID = "SMET_LAUNCH_ID"
"""Set on every process of an attempt, so that they, and no others, can be found and signalled on their hosts."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"^[\w@%+=:,./-]*$", re.ASCII)


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of ``environ`` that ``CARRIED`` names."""

    def named(name: str) -> bool:
        return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in CARRIED)

    return {name: environ[name] for name in sorted(environ) if named(name) and name != LAUNCH_ID}


def asked_for(arguments: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables given as ``NAME=VALUE``, or as ``NAME`` with this process's value.

    Raises:
        LaunchError: a name that is none, or that is not set here.
    """
    found = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not _NAME.fullmatch(name):
            raise LaunchError(f"--env is '{argument}', expected NAME or NAME=VALUE")
        if not equals and name not in environ:
            raise LaunchError(f"--env {name} is not set here, expected it to be; give --env {name}=VALUE")
        found[name] = value if equals else environ[name]
    return found


def from_files(folders: Iterable[Path]) -> dict[str, str]:
    """Variables of the user's own environment files; a later folder's win.

    Raises:
        LaunchError: a line that is no ``NAME=VALUE``.
    """
    found = {}
    for path in (folder / FILE for folder in folders):
        if not path.is_file():
            continue
        for number, line in enumerate(outside.read_bytes(path, outside.MEGABYTE).decode().splitlines(), 1):
            name, equals, value = line.strip().partition("=")
            if line.strip().startswith("#") or not line.strip():
                continue
            if not equals or not _NAME.fullmatch(name):
                raise LaunchError(f"{path} line {number} is '{line}', expected NAME=VALUE")
            found[name] = value
    return found


def for_ranks(
    environ: Mapping[str, str], given: Iterable[str], folders: Iterable[Path], interface: str | None, per_host: int
) -> dict[str, str]:
    """All variables that ranks get, weakest source first: this process, environment files, options.

    Args:
        interface: network interface that ranks talk over.
        per_host: ranks on a host, which share its processors.
    """
    found = {**carried(environ), **from_files(folders)}
    found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, per_host))))
    if interface:
        found.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface)
    found.update(asked_for(given, environ))
    for name, value in found.items():
        if not _NAME.fullmatch(name):
            raise LaunchError(f"environment variable {name!r:.80} has a name that no shell takes; unset it")
        if any(ord(letter) < 32 and letter != "\t" for letter in value):
            raise LaunchError(
                f"environment variable {name} holds a line break, or another control character, which no launcher "
                "carries; unset it"
            )
    return dict(sorted(found.items()))


def render_file(variables: Mapping[str, str]) -> str:
    """DeepSpeed's environment file. It puts values with special characters in double quotes, and escapes nothing."""
    lines = []
    for name, value in variables.items():
        value = value.replace("%", "%%")  # pdsh puts the host's name for %h
        if not _PLAIN.match(value):
            value = re.sub(r'([\\"$`])', r"\\\1", value)
        lines.append(f"{name}={value}\n")
    return "".join(lines)
