"""Run the workers over all units that are not done, with progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from tools.corpus.parts import PartSummary
from tools.corpus.pool import Pool, Task, run_tasks
from tools.corpus.sources import Unit
from tools.corpus.work import Job, encode_segment, encode_stream, encode_unit, unit_segments


def make_parts(job: Job, units: Sequence[Unit], pool: Pool, finished: Sequence[PartSummary]) -> None:
    """Make the parts of ``units`` but those in ``finished``."""
    sequential = sum(unit.sequential for unit in units)
    # Many streams: each worker reads one. Few: this process reads, so that all workers have text to encode.
    tasks = _tasks(job, units, finished, read_here=sequential < 2 * pool.workers)
    # The size of standard input and of datasets is not known.
    expected = sum(unit.size for unit in units) if all(unit.size for unit in units) else None
    done = sum(summary.read_bytes for summary in finished)
    with tqdm(
        total=expected, initial=done, unit="B", unit_scale=True, desc="tokenize", disable=None, file=sys.stderr
    ) as bar:
        tokens, started = 0, time.monotonic()
        for made in run_tasks(pool, tasks):
            tokens += sum(summary.tokens for summary in made)
            bar.update(sum(summary.read_bytes for summary in made))
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started) / 1e6:.2f} Mtokens/s")


def _tasks(job: Job, units: Sequence[Unit], finished: Sequence[PartSummary], read_here: bool) -> Iterator[Task]:
    done: dict[int, set[int]] = {}
    lengths: dict[int, int] = {}
    for summary in finished:
        done.setdefault(summary.unit, set()).add(summary.segment)
        if summary.last:
            lengths[summary.unit] = summary.segment + 1
    for unit in units:
        have = done.get(unit.number, set())
        if len(have) == lengths.get(unit.number):
            continue
        if not unit.sequential:
            yield encode_unit, (job, unit)
        elif read_here or unit.slices[0].source.path == "-":
            for segment in unit_segments(unit, job.settings):
                if segment.number not in have:
                    yield encode_segment, (job, unit.number, segment)
        else:
            yield encode_stream, (job, unit, frozenset(have))
