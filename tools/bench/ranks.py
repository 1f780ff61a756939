"""Runs a function in real processes, which share a process group."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from tqdm import tqdm

from pretrain.layout import Layout
from pretrain.ports import any_free
from pretrain.startup import start

from .options import Options


@dataclass(frozen=True)
class Rank:
    """One process and what it works with."""

    options: Options
    layout: Layout
    folder: Path
    """Shared by all ranks, and gone afterwards."""
    tick: Callable[[], Any]
    """To be called after each piece of work, for the progress bar."""


Job = Callable[[Rank], Any]
"""What a rank does; returns plain data."""


def run(job: Job, options: Options, title: str, ticks: int) -> Any:
    """What ``job`` returned on rank 0 of ``options.ranks`` processes of one thread each.

    Args:
        job: stands at the top level of a module.
        title: of the progress bar.
        ticks: how often the job reports progress.
    """
    # Forks of a process that has imported everything start ten times faster; CUDA does not survive a fork.
    method = "spawn" if options.device == "cuda" else "forkserver"
    if method == "forkserver":
        multiprocessing.get_context(method).set_forkserver_preload([f"{__package__}.everything"])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        arguments = (options.ranks, any_free(), job, options, Path(folder), title, ticks)
        multiprocessing.start_processes(_rank, arguments, nprocs=options.ranks, start_method=method)
        return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))


def _rank(
    rank: int, ranks: int, port: int, job: Job, options: Options, folder: Path, title: str, ticks: int
) -> None:  # fmt: skip
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        LOCAL_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    quiet()
    layout = start(options.config(folder))
    with tqdm(total=ticks, desc=title, file=sys.stderr, disable=rank > 0) as bar:
        result = job(Rank(options, layout, folder, bar.update))
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    layout.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # spawned processes are torn down as any program is; see pretrain.leaving


def quiet() -> None:
    """Keep libraries' chatter off the screen; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
