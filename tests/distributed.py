"""Run a function on several real processes that share a gloo process group.

    losses = run_ranks(train_a_little, 2, config)        # [value of rank 0, value of rank 1]

The function and its arguments are pickled: the function must stand at the top level of a module.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


class RankError(AssertionError):
    """A rank failed, died or hung; the text has each such rank's traceback, prefixed by its number."""


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call ``function(*args)`` on every rank and return what each returned, by rank.

    A rank finds torch.distributed initialised (gloo), the usual environment variables set, one thread,
    and DeepSpeed imported, quiet and without its shared-memory operator (slow to build, never needed).

    Args:
        function: Top-level function; its return value must be picklable.
        world_size: Number of processes, at least 1.
        timeout: Seconds until all ranks are killed.

    Raises:
        RankError: a rank raised, died or was not done in time. No process is left behind.
    """
    context = _context()
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder, port = Path(name), free_port()
        ranks: list[BaseProcess] = [
            context.Process(target=_rank_main, args=(function, args, rank, world_size, port, folder, timeout))
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            _wait_for_all(ranks, timeout)
            return [_result(folder, rank) for rank in range(world_size)] if _all_well(ranks) else _fail(folder, ranks)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                if process.pid is not None:
                    process.join()


def _context() -> Any:
    """How ranks are started: as forks of a process that has imported everything, which takes a tenth of the time.

    Where there are GPUs, each imports for itself: CUDA does not survive a fork.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return context


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_all(ranks: list[BaseProcess], timeout: float) -> None:
    """Return when all ranks ended, at the deadline, or soon after one of them failed."""
    deadline = time.monotonic() + timeout
    while running := [process for process in ranks if process.is_alive()]:
        if not _all_well([process for process in ranks if process not in running]):
            deadline = min(deadline, time.monotonic() + 3.0)  # the others may be about to fail by themselves
            wait([process.sentinel for process in running], timeout=max(0.0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            return
        wait([process.sentinel for process in running], timeout=max(0.0, deadline - time.monotonic()))


def _all_well(ranks: list[BaseProcess]) -> bool:
    return all(process.exitcode == 0 for process in ranks)


def _result(folder: Path, rank: int) -> Any:
    return pickle.loads((folder / f"{rank}.result").read_bytes())


def _fail(folder: Path, ranks: list[BaseProcess]) -> list[Any]:
    stuck = [process for process in ranks if process.is_alive()]
    for process in stuck:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGUSR1)  # faulthandler writes down where it is
    if stuck:
        time.sleep(0.5)
    lines = []
    for rank, process in enumerate(ranks):
        if process.exitcode == 0:
            continue
        report = folder / f"{rank}.traceback"
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        if process in stuck:
            stack = folder / f"{rank}.stack"
            text = "still running when all ranks were ended\n" + (stack.read_text() if stack.exists() else "")
        elif not text:
            text = f"died with exit code {process.exitcode} and no traceback\n"
        lines += [f"[rank {rank}] {line}" for line in text.splitlines()]
    raise RankError("\n".join(["not every rank succeeded:", *lines]))


def _rank_main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    port: int,
    folder: Path,
    timeout: float,
) -> None:
    """Body of one process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test leaves nobody behind
    with open(folder / f"{rank}.stack", "w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack)
        try:
            _set_up(rank, world_size, port, timeout)
            result = function(*args)
            (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        except BaseException:
            (folder / f"{rank}.traceback").write_text(traceback.format_exc(), encoding="utf-8")
            # No tear-down: it could wait for ranks that wait for this one.
            os._exit(1)
        if dist.is_initialized():
            dist.destroy_process_group()
        faulthandler.unregister(signal.SIGUSR1)


def _set_up(rank: int, world_size: int, port: int, timeout: float) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # the guess would be the same, with a warning
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # not "untested optimizer" once per engine
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout))
