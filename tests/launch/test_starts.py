"""The exact command of every launcher, compared with a stored one, and what survives the way to another host."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.arguments import run_parser
from launch.environment import render_file
from launch.prepare import batch_of
from launch.starts import start_of, through_pdsh
from pretrain.errors import LaunchError
from tests.launch.commands import ENVIRON, prepared, write_run

GOLDEN = Path(__file__).parent / "golden"
HOSTFILE = "worker-1 slots=2\nworker-2 slots=2\n"
IN_JOB = {**ENVIRON, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run file and a hostfile, and a home without settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(slurm, "expand", lambda nodes: ["node1", "node2"])
    write_run(tmp_path)
    (tmp_path / "hostfile").write_text(HOSTFILE)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments", "environ"),
    [
        ("local", ["--gpus-per-node", "2"], ENVIRON),
        ("local_devices", ["--gpus-per-node", "2"], {**ENVIRON, "CUDA_VISIBLE_DEVICES": "4,5,6"}),
        ("pdsh", ["--hostfile", "hostfile", "--interface", "eth0", "--env", "TOKEN=a $b"], ENVIRON),
        ("pdsh_options", ["--hostfile", "hostfile", "--nodes", "1", "--master-addr", "10.0.0.1", "--master-port",
                          "1234", "--ssh-args", "-F ssh_config", "--launcher-args", "-f 8"], ENVIRON),
        ("openmpi", ["--mpi", "--hostfile", "hostfile", "--interface", "eth0", "--ssh-args", "-p 2222"], ENVIRON),
        ("srun", ["--slurm"], IN_JOB),
        ("sbatch", ["--slurm", "--nodes", "2", "--gpus-per-node", "2", "--time", "24:00:00", "--partition", "gpu",
                    "--sbatch=--qos=long", "--env", "TOKEN=a $b", "--max-restarts", "5", "--preflight"], ENVIRON),
    ],
)  # fmt: skip
def test_the_command_is_the_stored_one(here: Path, name: str, arguments: list[str], environ: dict[str, str]) -> None:
    arguments = ["run.yaml", "train.steps=20", "sparsity.block=[1, 1]", *arguments]
    found = prepared(arguments, environ)
    if found.submits:
        text = slurm.render(batch_of(run_parser().parse_intermixed_args(arguments), found))
    else:
        text = start_of(found.job).render()
    stored = GOLDEN / f"{name}.txt"
    assert text == stored.read_text(), f"the new one, if it is right, belongs into {stored}:\n{text}"


def test_a_launcher_may_be_named_where_the_place_does_not_choose_one(here: Path) -> None:
    assert prepared(["run.yaml"], ENVIRON).job.launcher == "local"
    chosen = prepared(["run.yaml", "--launcher", "openmpi", "--hostfile", "hostfile"], ENVIRON).job
    assert chosen == prepared(["run.yaml", "--mpi", "--hostfile", "hostfile"], ENVIRON).job
    with pytest.raises(LaunchError, match="--launcher is given, and --slurm chooses one itself"):
        prepared(["run.yaml", "--launcher", "pdsh", "--slurm"], IN_JOB)


def test_every_stored_command_is_compared() -> None:
    compared = {"local", "local_devices", "pdsh", "pdsh_options", "openmpi", "srun", "sbatch"}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == compared


def test_the_batch_script_is_one_that_bash_reads(here: Path) -> None:
    checked = subprocess.run(["bash", "-n", GOLDEN / "sbatch.txt"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def by_deepspeed(argument: str) -> str:
    """What deepspeed.launcher.multinode_runner.PDSHRunner makes of a user's argument."""
    return '"{}"'.format(argument.replace('"', '\\"')) if " " in argument else argument


@pytest.mark.parametrize(
    "argument",
    ["train.steps=20", "sparsity.block=[1,16]", "sparsity.block=[1, 16]", 'a="b c"', "a=$HOME", "a=`id` $x", "a=b;c&d*",
     "a='b'", "a='b' c", "50%", "%h", "back\\slash and space", "train.output_dir=a(b)"],
)  # fmt: skip
def test_arguments_survive_deepspeed_pdsh_and_a_shell(argument: str) -> None:
    line = by_deepspeed(through_pdsh(argument)).replace("%%", "%")  # pdsh's own escape
    arrived = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, text=True, check=True)
    assert arrived.stdout == argument


@pytest.mark.parametrize("value", ["plain", "a b", "a $HOME `id`", 'say "x"', "back\\slash", "100%", "a;b"])
def test_variables_survive_deepspeeds_file_and_a_shell(value: str, tmp_path: Path) -> None:
    import re

    name, _, read = render_file({"X": value}).partition("=")
    read = read.strip()
    if re.search(r"[^\w@%+=:,./-]", read):  # MultiNodeRunner.add_export
        read = f'"{read}"'
    line = f'export {name}={read}; printf %s "$X"'.replace("%%", "%")
    arrived = subprocess.run(["bash", "-c", line.replace("printf %s", "printf '%s'")], capture_output=True, text=True)
    assert arrived.stdout == value


def test_what_is_printed_is_what_a_shell_takes(here: Path) -> None:
    start = start_of(prepared(["run.yaml", "sparsity.block=[1, 1]", "--gpus-per-node", "2"]).job)
    words = shlex.split(start.render().splitlines()[-1])
    assert tuple(words[-len(start.command) :]) == start.command
