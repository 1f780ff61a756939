"""From options to hosts and environment; what contradicts itself or does not fit is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.environment import for_ranks
from launch.hostfile import read_hostfile, render_hostfile
from launch.hosts import Host, choose
from pretrain.config import load_config
from pretrain.errors import LaunchError
from tests.launch.commands import ENVIRON, prepared, write_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "home").mkdir()
    write_run(tmp_path)
    (tmp_path / "hostfile").write_text("# mine\n\nworker-1 slots=2\nworker-2   slots=2 # slow\n")
    return tmp_path


def test_a_hostfile_is_read_back() -> None:
    hosts = read_hostfile(Path("hostfile"))
    assert hosts == (Host("worker-1", 2), Host("worker-2", 2))
    Path("again").write_text(render_hostfile(hosts))
    assert read_hostfile(Path("again")) == hosts


@pytest.mark.parametrize(
    ("text", "per_host", "expected"),
    [
        ("a slots=2 max_slots=4 # both\nb max-slots=8 slots = 1 // C++\n", None, [("a", 2), ("b", 1)]),
        ("a cpus=2\nb count=3\n\tc\tslot=1", None, [("a", 2), ("b", 3), ("c", 1)]),
        ("a\na\nb\na\n", None, [("a", 3), ("b", 1)]),  # as batch systems list hosts, once per rank
        ("a\nb\n", 8, [("a", 8), ("b", 8)]),
        ("a:2\nb:4\n", None, [("a", 2), ("b", 4)]),
        ("\ufeffa slots=2\r\n", None, [("a", 2)]),
    ],
)
def test_what_openmpi_and_batch_systems_write_is_read(
    text: str, per_host: int | None, expected: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs").write_text(text, encoding="utf-8")
    assert read_hostfile(Path("theirs"), per_host) == tuple(Host(*one) for one in expected)
    assert capsys.readouterr().err == ""


def test_words_of_a_hostfile_that_change_nothing_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs").write_text("a slots=2 sockets=2\nb slots=2 cores=8 sockets=1\n")
    assert read_hostfile(Path("theirs")) == (Host("a", 2), Host("b", 2))
    assert capsys.readouterr().err == "note: theirs: cores, sockets change nothing in a start\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no host"),
        ("worker-1", "bad does not say how many ranks worker-1 takes, expected 'NAME slots=N'"),
        ("a slots=two", "line 1 is 'a slots=two', expected 'NAME slots=N'"),
        ("a slots=1 slots=2", "line 1 is 'a slots=1 slots=2'"),
        ("a b slots=1", "line 1 is 'a b slots=1'"),
        ("a slot=1\na\na", "line 2 names a again"),
        ("a slots=4 max_slots=2", "slots=4 and max_slots=2, expected slots within max_slots"),
        ("a slotts=4", r"has the word 'slotts' \(did you mean 'slots'\?\)"),
        ("a slots=1 user=me", r"names a user; expected that in ssh's own settings, or --ssh-args '-l me'"),
        ("^a slots=1", "for mpirun alone: name the hosts"),
        ("a slots=0", "N of 1 or more"),
        ("a slots=1\na slots=1", "line 2 names a again"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_hostfile_is_refused(text: str | None, expected: str) -> None:
    path = Path("bad")
    if text is not None:
        path.write_text(text)
    with pytest.raises(LaunchError, match=expected):
        read_hostfile(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--local", "--slurm"], "--local and --slurm are both given"),
        (["--slurm", "--hostfile", "hostfile"], "--slurm and --hostfile are both given"),
        (["--nodes", "2"], "--nodes needs to know which"),
        (["--hostfile", "hostfile", "--nodes", "3"], "at most the 2 hosts"),
        (["--hostfile", "hostfile", "--gpus-per-node", "3"], "at most worker-1's 2 slots"),
        (["--gpus-per-node", "3"], "global_batch_size is 8"),
        (["--gpus-per-node", "3", "parallel.tensor=2"], "expected a multiple of parallel.tensor 2"),
        (["--gpus-per-node", "3", "parallel.pipeline=2", "parallel.zero_stage=1"], "1 host gives 3 ranks"),
        (["--slurm"], "give --nodes N --gpus-per-node N"),
        (["--slurm", "--gpus-per-node", "1", "--sbatch", "qos"], "expected an option with its dashes"),
        (["--env", "1X=2"], "--env is '1X=2'"),
        (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set here"),
        (["check", "--slurm", "--gpus-per-node", "1"], "expected to run inside a Slurm job"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = arguments[0] == "check"
    given = ["check", "run.yaml", *arguments[1:]] if check else ["run.yaml", "--dry-run", *arguments]
    assert main(given) == 2
    screen = capsys.readouterr()
    assert expected in screen.err
    assert all(line.startswith("error: ") for line in screen.err.splitlines())


def test_only_listed_and_asked_for_variables_are_carried(here: Path) -> None:
    (here / ".deepspeed_env").write_text("# mine\nGLOO_SOCKET_IFNAME=ib0\nNCCL_IB_HCA=other\n")
    found = for_ranks({**ENVIRON, "MINE": "1"}, ["MINE", "NEW=2"], (here,), None, 2)
    assert found == {
        "GLOO_SOCKET_IFNAME": "ib0", "MINE": "1", "NCCL_IB_HCA": "other", "NEW": "2", "OMP_NUM_THREADS": "4",
        "PATH": "/shared/env/bin:/usr/bin",
    }  # fmt: skip
    assert for_ranks(ENVIRON, [], (here,), "eth1", 2)["GLOO_SOCKET_IFNAME"] == "eth1"
    with pytest.raises(LaunchError, match="line break"):
        for_ranks({**ENVIRON, "NCCL_DEBUG": "a\nb"}, [], (), None, 2)


def test_a_bad_environment_file_is_named(here: Path) -> None:
    (here / ".deepspeed_env").write_text("export A=1\n")
    with pytest.raises(LaunchError, match=r"line 1 is 'export A=1', expected NAME=VALUE"):
        prepared(["run.yaml"])


@pytest.mark.parametrize(
    ("changes", "slots", "expected"),
    [
        ({}, [2, 2], ([2, 2], 1)),
        ({}, [2], ([2], 1)),
        ({}, [3, 3], ([2, 2], 1)),  # 6 ranks do not divide 8 sequences; 4 on two hosts
        ({}, [8, 8, 8], ([8], 1)),
        ({"train__micro_batch_size": 4}, [4], ([4], 2)),  # 8 sequences on 4 ranks leave 2 each
        ({"parallel__pipeline": 2, "parallel__zero_stage": 1}, [3], ([2], 1)),
        ({"parallel__pipeline": 2, "parallel__zero_stage": 1}, [1], None),
        ({}, [], None),
    ],
)
def test_the_largest_world_is_chosen(
    here: Path, changes: dict[str, int], slots: list[int], expected: tuple[list[int], int] | None
) -> None:
    config = load_config(write_run(here, **changes))
    chosen = choose(config, [Host(f"h{index}", count) for index, count in enumerate(slots)])
    got = None if chosen is None else ([host.slots for host in chosen.hosts], chosen.micro_batch_size)
    assert got == expected


def test_the_users_own_sbatch_options_win(capsys: pytest.CaptureFixture[str]) -> None:
    """Slurm takes the last of two equal options."""
    assert main(["run.yaml", "--slurm", "--gpus-per-node", "1", "--sbatch=--output=mine", "--dry-run"]) == 0
    outputs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#SBATCH --output")]
    assert outputs[-1] == "#SBATCH --output=mine"


def test_a_dry_run_looks_up_what_the_run_file_names(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sparsity.growth=tests.smet.own_criteria:mixd", "optimizer.name=no.such:Thing", "callbacks=[no.such:One]"]
    assert main(["run.yaml", "--dry-run", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 3
    assert "sparsity.growth is 'tests.smet.own_criteria:mixd': tests.smet.own_criteria has no 'mixd' (did you" in err
    assert "optimizer.name is 'no.such:Thing'" in err and "callbacks[0].name is 'no.such:One'" in err
    assert main(["run.yaml", "--dry-run", "sparsity.growth=tests.smet.own_criteria:mixed"]) == 0


def test_it_starts_without_torch() -> None:
    program = (
        "import sys; import launch.__main__, launch.prepare, launch.supervisor, launch.status, launch.preflight;"
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_a_pipe_or_a_huge_file_in_place_of_a_hostfile_does_not_hold_a_start_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_bytes(b"a" * (2 << 20))
    for name, said in (("pipe", "not a regular file"), ("huge", "2,097,152 bytes, expected at most")):
        with pytest.raises(LaunchError, match=f"hostfile .*/{name} cannot be read .*{said}") as caught:
            read_hostfile(tmp_path / name)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-restarts", "-1"], "argument --max-restarts: is '-1', expected a whole number of 0 or more"),
        (["--back-off", "-5"], "argument --back-off: is -5, expected a number of seconds, 0 or more"),
        (["--patience", "-1"], "argument --patience: is -1, expected a number of seconds, 0 or more"),
        (["--nodes", "two"], "argument --nodes: is 'two', expected a whole number of 1 or more"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run.yaml", *words, "--dry-run"])
    assert ended.value.code == 2 and expected in capsys.readouterr().err
