"""Cluster tests run where their parts are to be had: root, network namespaces, and the packages of setup.sh."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Slurm

SETUP = Path(__file__).parent / "setup.sh"


def missing() -> str:
    """Why cluster tests cannot run here; empty if they can. Installs what is missing."""
    if os.getuid() != 0:
        return "no root"
    done = subprocess.run(["bash", SETUP], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["setup.sh failed"])[-1]
    probe = subprocess.run(["ip", "netns", "exec", "none", "true"], capture_output=True, text=True)
    name = f"smet-probe-{os.getpid()}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return probe.stderr.strip()


@pytest.hookimpl(trylast=True)  # after -m has chosen: nothing is installed for tests that do not run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave cluster tests out where they cannot run."""
    cluster = [item for item in items if item.get_closest_marker("cluster")]
    if cluster and (why := missing()):
        print(f"\ncluster tests are left out: {why}")
        config.hook.pytest_deselected(items=cluster)
        items[:] = [item for item in items if item not in cluster]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts with a network between them, reached by ssh."""
    made = Hosts(tmp_path / "hosts")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A Slurm cluster of two nodes on this machine."""
    made = Slurm(tmp_path / "slurm")
    try:
        made.start()
        yield made
    finally:
        made.stop()
