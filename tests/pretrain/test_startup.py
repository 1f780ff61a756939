"""Joining: what each launcher's variables mean, which device a process takes, which world sizes fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config import RunConfig, config_from_dict
from pretrain.environment import adopt_environment, check_world
from pretrain.errors import ConfigError, LaunchError
from pretrain.startup import choose_device
from tests.pretrain.attempts import launch, write_run_file
from tests.pretrain.runs import settings, write_corpus

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def adopted(**given: str) -> dict[str, str]:
    environ = dict(given)
    adopt_environment(environ)
    return environ


def test_slurm() -> None:
    found = adopted(**SLURM, SLURM_LAUNCH_NODE_IPADDR="10.0.0.7", SLURM_NTASKS_PER_NODE="4")
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("5", "8", "1")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["LOCAL_WORLD_SIZE"]) == ("10.0.0.7", "29500", "4")


def test_an_address_that_was_given_stands() -> None:
    found = adopted(**SLURM, SLURM_LAUNCH_NODE_IPADDR="10.0.0.7", MASTER_ADDR="head", MASTER_PORT="1234")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("head", "1234")


def test_openmpi() -> None:
    found = adopted(**OPENMPI, MASTER_ADDR="head")
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("3", "4", "1")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["LOCAL_WORLD_SIZE"]) == ("head", "29500", "2")


@pytest.mark.parametrize(("launcher", "given"), [("OpenMPI", OPENMPI), ("Slurm", SLURM)])
def test_several_processes_need_an_address(launcher: str, given: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match=f"{launcher} started . processes without MASTER_ADDR; export MASTER_ADDR"):
        adopted(**given)


@pytest.mark.parametrize(
    ("nodes", "given", "address"),
    [
        ("node[07-12,15]-ib", "4", "node07-ib"), ("a1,a2", "2", "a1"), ("gpu3", "1", "127.0.0.1"),
        ("b[2,9]", "2", "b2"),
    ],
)  # fmt: skip
def test_slurms_ranks_meet_at_the_first_host_of_their_step(nodes: str, given: str, address: str) -> None:
    """And not where srun was typed, which may be a login node."""
    step = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_NODES": given, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert adopted(**SLURM, **step)["MASTER_ADDR"] == address


def test_a_slurm_step_counts_its_own_tasks() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert adopted(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_LOCALID="0", **step)["WORLD_SIZE"] == "1"


def test_mpich_and_wrong_numbers_all_at_once() -> None:
    assert adopted(PMI_RANK="1", PMI_SIZE="2", MASTER_ADDR="a")["RANK"] == "1"
    with pytest.raises(LaunchError) as caught:
        adopted(RANK="x", WORLD_SIZE="-1", LOCAL_RANK="")
    assert str(caught.value).startswith(
        "RANK is 'x', expected a whole number; WORLD_SIZE is '-1', expected a whole number"
    )
    assert "LOCAL_RANK is ''" in str(caught.value) and "unset RANK WORLD_SIZE" in str(caught.value)


def test_no_launcher_is_one_process() -> None:
    found = adopted()
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("0", "1", "0")


def test_a_shell_in_a_slurm_job_of_one_task_is_one_process() -> None:
    found = adopted(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0")
    assert (found["RANK"], found["WORLD_SIZE"]) == ("0", "1")


def test_torchs_and_deepspeeds_own_variables_come_first() -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert adopted(**SLURM, **OPENMPI, **given) == {**SLURM, **OPENMPI, **given}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the number of GPUs that this host seems to have, and this process's place on it."""

    def place(count: int, **environ: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name in ("LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, str(value))

    return place


def test_auto_takes_a_gpu_where_there_is_one(gpus: Any) -> None:
    gpus(0, LOCAL_RANK=3)
    assert choose_device("auto") == torch.device("cpu")
    gpus(4, LOCAL_RANK=3)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 3)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_too_few_gpus_are_an_error_in_every_process_of_the_host(gpus: Any, wanted: str, variable: str) -> None:
    """Also in those that would have one: else they would wait for the others without a word."""
    for local in range(4):
        gpus(2, LOCAL_RANK=local, **{variable: 4})
        with pytest.raises(LaunchError) as caught:
            choose_device(wanted)
        assert str(caught.value) == (
            f"train.device is {wanted}, and 4 processes on this host need a GPU each, it has 2; start at most 2 per "
            "host, or set train.device to cpu"
        )


def test_without_a_launchers_count_a_process_knows_of_itself(gpus: Any) -> None:
    gpus(2, LOCAL_RANK=1)
    assert choose_device("auto") == torch.device("cuda", 1)
    gpus(2, LOCAL_RANK=2)
    with pytest.raises(LaunchError, match="3 processes on this host need a GPU each, it has 2"):
        choose_device("auto")


def test_two_ranks_without_a_gpu_print_one_line_and_both_end_with_2(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", tokens=2000)
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", train__device="cuda")
    first, second = launch(2, [file], LOCAL_WORLD_SIZE="99")
    assert (first.returncode, second.returncode) == (2, 2)
    (line,) = [line for line in first.stderr.splitlines() if not line.startswith("waiting: ")]  # a slow machine's
    assert line.startswith("error: train.device is cuda, and 99 processes on this host need a GPU each, it has ")
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")
    assert not (tmp_path / "run").exists()


def config(**changes: Any) -> RunConfig:
    """4 heads and 2 layers, so that tensor 2 and pipeline 2 fit; 8 sequences per step."""
    given = settings("corpus", Path("run"), parallel__zero_stage=1, **changes)
    given["model"] = {**given["model"], "vocab_size": 98, "hidden_size": 32, "num_attention_heads": 4}
    given["model"]["num_key_value_heads"] = 2
    return config_from_dict(given)


@pytest.mark.parametrize(
    ("world", "degrees"), [(1, {}), (8, {}), (4, {"tensor": 2}), (8, {"tensor": 2, "pipeline": 2})]
)
def test_degrees_that_fit(world: int, degrees: dict[str, int]) -> None:
    check_world(world, config(**{f"parallel__{name}": degree for name, degree in degrees.items()}))


def test_degrees_that_do_not_divide_the_processes() -> None:
    with pytest.raises(LaunchError) as caught:
        check_world(3, config(parallel__tensor=2))
    assert str(caught.value).startswith(
        "3 processes started, expected a multiple of parallel.tensor 2 x parallel.pipeline 1 = 2; start a multiple"
    )
    with pytest.raises(LaunchError, match="1 process started, which is what a start without a launcher gives"):
        check_world(1, config(parallel__tensor=2))


def test_a_batch_that_does_not_divide_among_the_data_parallel_ranks() -> None:
    check_world(6, config(parallel__tensor=2, train__global_batch_size=9))
    with pytest.raises(ConfigError, match="global_batch_size is 9, .* 1 x 2 data-parallel ranks = 2"):
        check_world(4, config(parallel__tensor=2, train__global_batch_size=9))
