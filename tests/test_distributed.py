"""The helper that runs ranks: values, tracebacks, hangs, and nobody left behind."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankError, run_ranks


def add_ranks(offset: int) -> tuple[int, float, int]:
    total = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(total)
    return dist.get_rank(), total.item(), torch.get_num_threads()


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank one is unwell")
    dist.barrier()


def hang_on_rank_one(folder: str) -> None:
    with open(f"{folder}/{dist.get_rank()}", "w") as file:
        file.write(str(os.getpid()))
    while dist.get_rank() == 1:
        time.sleep(1)


def die_on_rank_zero() -> None:
    if dist.get_rank() == 0:
        os._exit(7)


def start_deepspeed() -> str:
    import deepspeed

    deepspeed.init_distributed("gloo")
    return str(dist.get_backend())


def test_every_rank_returns_its_value() -> None:
    assert run_ranks(add_ranks, 3, 10) == [(rank, 33.0, 1) for rank in range(3)]


def test_a_failing_rank_shows_its_traceback_and_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        run_ranks(fail_on_rank_one, 2, timeout=100)
    assert "[rank 1] ValueError: rank one is unwell" in str(caught.value)
    assert "in fail_on_rank_one" in str(caught.value)
    assert time.monotonic() - start < 60


def test_a_hanging_rank_is_killed_and_tells_where_it_hung(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(RankError, match=r"\[rank 1\] still running(.|\n)*in hang_on_rank_one"):
        run_ranks(hang_on_rank_one, 2, str(tmp_path), timeout=12)
    with open(f"{os.fspath(tmp_path)}/1") as file, pytest.raises(ProcessLookupError):
        os.kill(int(file.read()), 0)


def test_a_dead_rank_is_named() -> None:
    with pytest.raises(RankError, match=r"\[rank 0\] died with exit code 7 and no traceback"):
        run_ranks(die_on_rank_zero, 2)


def test_deepspeed_takes_the_group_as_it_is() -> None:
    assert run_ranks(start_deepspeed, 2) == ["gloo", "gloo"]
