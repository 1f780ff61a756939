"""Where tasks run: in this process or in worker processes, with a bounded number under way."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_exit
from typing import Any

from pretrain.errors import DataError

Task = tuple[Callable[..., Any], tuple[Any, ...]]


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


def default_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with_parent() -> None:
    """Leave no worker behind when the main process is killed: its end of the pipe closes with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait_for_exit([sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def open_pool(workers: int) -> Iterator[Executor]:
    """An executor of ``workers`` processes; one worker is this process itself."""
    if workers == 1:
        yield InlineExecutor()
        return
    # Spawned, not forked: libraries that workers use (Arrow, datasets) keep threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def run_tasks(pool: Executor, tasks: Iterable[Task], under_way: int) -> Iterator[Any]:
    """Results as they come; never more than ``under_way`` tasks are submitted and not yet yielded.

    Raises:
        DataError: a worker process died.
    """
    pending: set[Future[Any]] = set()
    try:
        for function, args in tasks:
            pending.add(pool.submit(function, *args))
            while len(pending) >= under_way:
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
