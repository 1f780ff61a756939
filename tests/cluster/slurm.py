"""A Slurm cluster of two nodes on this machine, started by hand: munged, slurmctld, and a slurmd per node."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.cluster.hosts import die_with_parent
from tests.distributed import free_port

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
MessageTimeout=30
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=1000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=60 State=UP OverSubscribe=YES
"""


class Slurm:
    """The cluster.

    Args:
        folder: for settings, state and logs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environ(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Bring all up; returns when both nodes are idle."""
        (self.folder / "state").mkdir(parents=True)
        for node in ("node1", "node2"):
            (self.folder / f"spool-{node}").mkdir()
        for path in (self.folder, *self.folder.parents):
            if path.stat().st_uid == os.getuid() and str(path).startswith("/tmp"):
                path.chmod(0o755)  # munged trusts no folder that others may write, and its clients must get in
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        ports = [free_port() for _ in range(3)]
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname().split(".")[0], folder=self.folder, port=ports[0], first=ports[1],
                second=ports[2],
            )
        )  # fmt: skip
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("node1", "node2"):
            self._daemon("slurmd", "-D", "-N", node)
        self._until(lambda: self.call("sinfo", "-h", "-N", "-o", "%t").split() == ["idle", "idle"], "slurmd")

    def _daemon(self, *command: str) -> None:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        program = shutil.which(command[0], path=path)
        assert program is not None, command[0]
        with open(self.folder / f"{command[0]}-{len(self._daemons)}.out", "wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *command[1:]], env={**os.environ, **self.environ}, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=die_with_parent,
                )
            )  # fmt: skip

    def _until(self, condition: object, who: str, seconds: float = 30.0) -> None:
        assert callable(condition)
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{who}: {self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of every log."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
            for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        )

    def call(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else done.stderr

    def state(self, job: str) -> str:
        """State of a job, such as RUNNING."""
        fields = self.call("scontrol", "show", "job", job).split()
        return next((field.partition("=")[2] for field in fields if field.startswith("JobState=")), "UNKNOWN")

    def stop(self) -> None:
        """End jobs and daemons."""
        self.call("scancel", "--user=root", "--full")
        deadline = time.monotonic() + 15
        while self.call("squeue", "-h", "-o", "%t").strip() and time.monotonic() < deadline:
            time.sleep(0.3)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
