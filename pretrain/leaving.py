"""The end of a process that is one of many."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pretrain.screen import on_screen


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and end the process with the code it returns, without tearing the interpreter down.

    Threads of gloo release the tensors of the last collectives after these are done. One that does so while
    Python is being finalized aborts the process (https://github.com/pytorch/pytorch/issues/190489), and then the
    launcher calls a finished run a failed one. ``destroy_process_group`` alone does not help: the threads live as
    long as anything refers to their group, as DeepSpeed's modules do. Other threads are waited for and exit
    handlers are called, as ever; only handlers registered before this call are not.
    """
    codes: list[int] = []

    def end() -> None:
        if not codes:
            return  # SystemExit or an exception that main did not handle: the usual way
        _leave_group()
        _leave_mpi()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        os._exit(codes[0])

    atexit.register(end)  # the first to be registered is the last to be called
    codes.append(on_screen(main))
    sys.exit(codes[0])


def _leave_group() -> None:
    if "torch.distributed" not in sys.modules:
        return  # a mistake in the settings, say, ends before torch is imported, which takes seconds
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_mpi() -> None:
    """mpirun takes a rank for a failed one that began with MPI and did not end it, which Python's own end would do."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
