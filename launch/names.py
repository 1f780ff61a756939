"""Names of hosts, interfaces and folders that end up in commands: plain ones alone, which no shell or ssh obeys."""

from __future__ import annotations

import re

from pretrain.errors import LaunchError

# A name that begins with a dash is an option to ssh (-oProxyCommand=... runs a program), and pdsh and Slurm take
# brackets, commas and carets for patterns.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_]([A-Za-z0-9_.:-]*[A-Za-z0-9_])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,63}")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_@%+=:,./~-]*")
_DIRECTIVE = re.compile(r"[^\x00-\x1f\x7f]*")


def require_host(name: str, where: str) -> str:
    """``name``, if it is one of a host: letters, digits, ``-``, ``.``, ``:`` and ``_``, perhaps after ``user@``.

    Args:
        where: where it stands, for the message.

    Raises:
        LaunchError: it is none.
    """
    if not _HOST.fullmatch(name):
        raise LaunchError(
            f"{where} names {name!r:.80}, expected a host: letters, digits, '-', '.', ':' and '_', and no '-' in front"
        )
    return name


def require_interface(name: str) -> str:
    """``name``, if it can be one of a network interface.

    Raises:
        LaunchError: it cannot.
    """
    if not _INTERFACE.fullmatch(name):
        raise LaunchError(f"--interface is {name!r:.80}, expected the name of a network interface, such as eth0")
    return name


def require_plain_path(path: str, what: str) -> str:
    """``path``, if DeepSpeed's pdsh launcher can put it into a remote shell's command as it does: without quotes.

    Raises:
        LaunchError: it holds characters that a shell obeys.
    """
    if not _PLAIN_PATH.fullmatch(path):
        raise LaunchError(
            f"{what} is {path!r}, expected a path without blanks or characters that a shell obeys: DeepSpeed's "
            "launcher over ssh hands it to the shells of all hosts as it is; use another folder"
        )
    return path


def require_one_line(text: str, what: str) -> str:
    """``text``, if it can stand in one line of a batch script: another line would be another command.

    Raises:
        LaunchError: it cannot.
    """
    if not _DIRECTIVE.fullmatch(text):
        raise LaunchError(f"{what} is {text!r:.80}, expected one line without control characters")
    return text
