"""Run the workers over all units that are not done, with progress on stderr."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from .parts import PartSummary
from .pool import Pool, Task, run_tasks
from .progress import progress
from .sources import Unit
from .work import Job, encode_segment, encode_stream, encode_unit, unit_segments


class Finished:
    """What an earlier start of the run has done."""

    def __init__(self, summaries: Iterable[PartSummary]):
        self.read_bytes = 0
        self.segments: defaultdict[int, dict[int, int]] = defaultdict(dict)
        """For each unit, the checksums of its finished segments."""
        self._lengths: dict[int, int] = {}
        for summary in summaries:
            self.read_bytes += summary.read_bytes
            self.segments[summary.unit][summary.segment] = summary.checksum
            if summary.last:
                self._lengths[summary.unit] = summary.segment + 1

    def complete(self, unit: Unit) -> bool:
        """Whether all segments of a unit are there."""
        return len(self.segments[unit.number]) == self._lengths.get(unit.number)


def make_parts(job: Job, units: Sequence[Unit], pool: Pool, finished: Finished) -> None:
    """Make the parts of ``units`` that are not ``finished``."""
    sequential = sum(unit.sequential for unit in units)
    # Many streams: each worker reads one. Few: this process reads, so that all workers have text to encode.
    tasks = _tasks(job, units, finished, read_here=sequential < 2 * pool.workers)
    # The size of standard input and of datasets is not known.
    expected = sum(unit.size for unit in units) if all(unit.size for unit in units) else None
    with progress("tokenize", total=expected, initial=finished.read_bytes, unit="B", unit_scale=True) as bar:
        tokens, started = 0, time.monotonic()
        for made in run_tasks(pool, tasks):
            tokens += sum(summary.tokens for summary in made)
            bar.update(sum(summary.read_bytes for summary in made))
            rate = tokens / (time.monotonic() - started) / 1e6
            bar.set_postfix_str(f"{rate:.2f} Mtokens/s", refresh=False)


def _tasks(job: Job, units: Sequence[Unit], finished: Finished, read_here: bool) -> Iterator[Task]:
    for unit in units:
        done = finished.segments[unit.number]
        standard_input = unit.slices[0].source.path == "-"
        if finished.complete(unit) and not standard_input:
            continue
        if not unit.sequential:
            yield encode_unit, (job, unit)
        elif read_here or standard_input:
            for segment in unit_segments(unit, job.settings):
                if segment.number in done:
                    segment.check(unit, done[segment.number])
                else:
                    yield encode_segment, (job, unit.number, segment)
        else:
            yield encode_stream, (job, unit, done)
