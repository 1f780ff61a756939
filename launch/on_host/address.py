"""At which address and port others reach this host: of the named interface, or the one that ssh came in by."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys

SIOCGIFADDR = 0x8915


def of_interface(name: str) -> str:
    """IPv4 address of a network interface.

    Raises:
        OSError: there is none of that name, or it has no address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    return socket.inet_ntoa(answer[20:24])


def free_port(first: int) -> int:
    """``first``, or the next port that nobody listens on; ``first`` where there is none near."""
    for port in range(first, min(first + 200, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                return port
            except OSError:
                continue
    return first


def main(given: str) -> int:
    """``{"interface": name or null, "port": where to look from}``; prints ``{"address", "port", "error"}``."""
    task = json.loads(given)
    name = task["interface"]
    address, error = None, None
    if name:
        try:
            address = of_interface(name)
        except OSError:
            have = ", ".join(other for _, other in socket.if_nameindex())
            error = f"has no interface {name} with an address, it has {have}"
    else:
        came_in = os.environ.get("SSH_CONNECTION", "").split()
        address = came_in[2] if len(came_in) > 2 else socket.gethostbyname(socket.gethostname())
    print(json.dumps({"address": address, "port": free_port(task["port"]), "error": error}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
