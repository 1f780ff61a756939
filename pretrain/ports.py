"""Ports of this host: whether one is free, which is the next that is, and who holds it."""

from __future__ import annotations

import errno
import socket

from pretrain.errors import LaunchError

TRIED = 200


def listen(port: int) -> socket.socket:
    """A socket that listens on ``port`` of all addresses of this host.

    Raises:
        OSError: it is taken, or not ours to take.
    """
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
    )


def is_free(port: int) -> bool:
    """Whether a rendezvous could listen on ``port``."""
    try:
        listen(port).close()
    except OSError:
        return False
    return True


def any_free() -> int:
    """A port of this machine that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def next_free(port: int) -> int:
    """``port``, or the first behind it that is free.

    Raises:
        LaunchError: there is none near.
    """
    for candidate in range(port, min(port + TRIED, 65536)):
        if is_free(candidate):
            return candidate
    raise LaunchError(f"ports {port} to {min(port + TRIED, 65536) - 1} are all taken; give --master-port")


def holder(port: int) -> str:
    """Who listens on ``port`` of this host, in words: process and command line."""
    import psutil

    try:
        pids = {
            found.pid
            for found in psutil.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
        }
    except (psutil.Error, OSError):
        pids = set()
    for pid in sorted(pid for pid in pids if pid):
        try:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:120]})"
        except psutil.Error:
            return f"process {pid}"
    return "a process of another user or container" if not is_free(port) else "a process that has gone meanwhile"


def why_not(error: OSError, port: int, how: str) -> str:
    """One line on a port that could not be taken.

    Args:
        how: how the user gives another, such as ``--master_port``.
    """
    if error.errno == errno.EADDRINUSE:
        free = next((other for other in range(port + 1, min(port + TRIED, 65536)) if is_free(other)), None)
        another = f"such as `{how}{free}`" if free else f"with {how.strip('= ')}"
        return f"port {port} of {socket.gethostname()} is held by {holder(port)}; give this run another, {another}"
    return f"port {port} of {socket.gethostname()} cannot be listened on ({error.strerror}); give a port above 1024"
