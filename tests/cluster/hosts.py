"""Two hosts on this machine: network namespaces with a bridge between them, names of their own, and an sshd each.

They share the file system, as hosts of a cluster share a folder, and process numbers, as those of a cluster do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

NAMES = ("host-a", "host-b")
SSHD = """
Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
MaxStartups 100
"""
SSH = """
Host {names}
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def run(*command: str) -> str:
    """Run to the end; an error carries what was printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def die_with_parent() -> None:
    """In a new process: end when the test session is killed. Daemons that outlive it would never end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def clear_leftovers() -> None:
    """Take down hosts of test sessions that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for space in re.findall(r"^(smet-\d+-\S+)", listed, flags=re.M):
        if not Path(f"/proc/{space.split('-')[1]}").exists():
            remove(space)


def remove(space: str) -> None:
    """End everything that runs in a network namespace, and delete it; its interfaces go with it."""
    for pid in processes(space):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True)
    shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


def processes(space: str) -> list[int]:
    """Everything that runs in a network namespace."""
    listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


class Hosts:
    """The hosts, and how to reach and to break them.

    Args:
        folder: for keys and settings.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.net, self.bridge = "", ""
        self.spaces = {name: f"smet-{os.getpid()}-{name}" for name in NAMES}
        self.addresses: dict[str, str] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def ssh_config(self) -> Path:
        """To be given to ssh with -F."""
        return self.folder / "ssh_config"

    def start(self) -> None:
        """Bring all up; returns when both answer."""
        clear_leftovers()
        self._make_bridge()
        self.folder.mkdir(parents=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        entries = [f"Host {name}\n  HostName {address}\n" for name, address in self.addresses.items()]
        self.ssh_config.write_text("".join(entries) + SSH.format(names=" ".join(NAMES), folder=self.folder))
        run("ip", "addr", "add", f"{self.net}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        for name in NAMES:
            self._start(name)
        for name in NAMES:
            self._wait_for(name)

    def _make_bridge(self) -> None:
        """The first bridge, and its network, that no other test session uses."""
        for number in range(20, 220):
            bridge = f"smet{number}"
            if subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True).returncode == 0:
                self.net, self.bridge = f"10.{number}.77", bridge
                self.addresses = {name: f"{self.net}.{2 + place}" for place, name in enumerate(NAMES)}
                return
        raise AssertionError("no bridge can be made")

    def _start(self, name: str) -> None:
        space, outer = self.spaces[name], self._outer(name)
        run("ip", "netns", "add", space)
        etc = Path("/etc/netns") / space
        etc.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {other}" for other, address in self.addresses.items())]
        (etc / "hosts").write_text("\n".join(lines) + "\n")
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", outer, "master", self.bridge, "up")
        inside = ("ip", "-n", space)
        run(*inside, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        config = self.folder / f"sshd_{name}"
        config.write_text(SSHD.format(address=self.addresses[name], folder=self.folder))
        script = f"hostname {name} && exec /usr/sbin/sshd -D -e -f {config}"
        log = open(self.folder / f"{name}.log", "wb")  # noqa: SIM115  (the daemon's, as long as it lives)
        self._daemons.append(
            subprocess.Popen(
                ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", script],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        )
        log.close()

    def _outer(self, name: str) -> str:
        return f"{self.bridge}{name[-1]}"

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while True:
            done = subprocess.run(
                ["ssh", "-F", str(self.ssh_config), "-o", "ConnectTimeout=2", name, "hostname"],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.stdout.strip() == name:
                return
            log = (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline, f"{name} does not answer: {done.stderr} {log}"
            time.sleep(0.2)

    def cut_off(self, name: str) -> None:
        """Take the host from the network."""
        run("ip", "link", "set", self._outer(name), "down")

    def hostfile(self, slots: int = 1) -> Path:
        """Both hosts with ``slots`` each."""
        path = self.folder / "hostfile"
        path.write_text("".join(f"{name} slots={slots}\n" for name in NAMES))
        return path

    def stop(self) -> None:
        """End everything that runs there, and take the hosts down."""
        for name, space in self.spaces.items():
            remove(space)
            subprocess.run(["ip", "link", "delete", self._outer(name)], capture_output=True)
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)
