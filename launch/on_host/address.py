"""At which address other hosts reach this one: that of the named interface, or the one that ssh came in by."""

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


def main(given: str) -> int:
    """``{"interface": name or null}``; prints ``{"address": ..., "error": ...}``."""
    name = json.loads(given)["interface"]
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
    print(json.dumps({"address": address, "error": error}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
