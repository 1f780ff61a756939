"""Where tasks run: in this process, in worker processes, or in the ranks of ``mpirun``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_exit
from typing import Any, NamedTuple, cast

from pretrain.errors import DataError

Task = tuple[Callable[..., Any], tuple[Any, ...]]


class Pool(NamedTuple):
    """An executor and how many tasks it runs at a time."""

    executor: Executor
    workers: int


class InlineExecutor(Executor):
    """Runs a task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is already done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def mpi_ranks() -> int:
    """Processes that ``mpirun`` started, by the environment it sets; 1 without it."""
    return max(int(os.environ.get(name) or 1) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


@contextmanager
def open_pool(workers: int) -> Iterator[Pool | None]:
    """Open the workers: ``workers`` processes (one worker is this process itself), or all MPI ranks but the first.

    Yields:
        The pool; None in an MPI rank that has served as a worker until the first rank was done.
    """
    if mpi_ranks() > 1:
        from mpi4py.futures import MPICommExecutor

        with MPICommExecutor() as ranks:
            yield Pool(cast(Executor, ranks), mpi_ranks() - 1) if ranks is not None else None
    elif workers == 1:
        yield Pool(InlineExecutor(), 1)
    else:
        # Not forked from here: libraries in use (Arrow, datasets) may have threads by now. A clean server
        # process imports what workers need once, and is forked instead.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.work"])
        executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            yield Pool(executor, workers)
        finally:
            executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave no worker behind when the main process is killed, and leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait_for_exit([sentinel]), os._exit(1)), daemon=True).start()


def run_tasks(pool: Pool, tasks: Iterable[Task]) -> Iterator[Any]:
    """Results as they come. At most two tasks per worker are under way, so tasks may hold text.

    Raises:
        DataError: a worker process died.
    """
    pending: set[Future[Any]] = set()
    try:
        for function, args in tasks:
            pending.add(pool.executor.submit(function, *args))
            while len(pending) >= 2 * pool.workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenExecutor:
        raise DataError(
            "a worker process died, most often for lack of memory; start the same command again to go on where it "
            "stopped, with fewer --workers"
        ) from None
    finally:
        for future in pending:
            future.cancel()
