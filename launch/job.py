"""What is to be started, and how: the two ends of every launcher in ``launch.starts``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pretrain.environment import PORT

from .hosts import Host

HOSTFILE, ENVIRONMENT = "{hostfile}", "{environment}"
ADDRESS = "{address}"
"""Placeholder for the first host's address, which is asked for when the run starts."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run where; equal for all attempts but for hosts, port and overrides."""

    launcher: str
    config: str
    overrides: tuple[str, ...]
    hosts: tuple[Host, ...]
    variables: dict[str, str]
    """Environment of the ranks."""
    python: str
    """The same path on every host."""
    folder: str
    """Working directory of the ranks, on every host."""
    port: int = PORT
    port_is_given: bool = False
    """Whether the user named it; else another is taken where it is not free."""
    address: str | None = None
    """Address at which all hosts reach the first; default: that of ``interface``, or the one that ssh uses."""
    interface: str | None = None
    ssh_arguments: str = ""
    """More options for ssh."""
    launcher_arguments: str = ""
    """More options for pdsh, mpirun or srun."""
    devices: tuple[int, ...] = ()
    """``local`` only: the GPUs to use, where not the first ones."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return sum(host.slots for host in self.hosts)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A command, the variables it is started with on top of this process's own, and files for it, by placeholder."""

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Placeholder in command and variables -> content; each is written to a file of its own."""

    def render(self) -> str:
        """For people: the files, then the command as a shell takes it."""
        parts = [f"# {name.strip('{}')}\n{text}" for name, text in self.files.items()]
        given = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        words = [*given, *(shlex.quote(word) if "{" not in word else word for word in self.command)]
        return "\n".join([*parts, "# command", " ".join(words)]) + "\n"
