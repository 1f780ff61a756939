"""What a worker does: turn the records of a unit into parts."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.data.indexed import token_dtype
from pretrain.data.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import DataError

from .extract import RejectedError, Settings, text_of
from .parts import PartSummary, PartWriter
from .raw import Problem, Raw
from .readers import read_slice
from .rejects import described
from .sources import Unit
from .streams import Meter

SEGMENT_BYTES = 8 << 20
"""Payload in one segment of a sequential unit; what a kill can cost at most per worker."""
_RECORD_BYTES = 256
"""What a record costs in memory beside its payload, so that many small ones fill a segment too."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task of a run has in common."""

    settings: Settings
    folder: Path
    """Where parts go."""
    stop_on_error: bool = False


class Segment(NamedTuple):
    """Consecutive records of a sequential unit."""

    number: int
    records: list[Raw]
    last: bool
    read_bytes: int
    checksum: int

    def check(self, unit: Unit, finished: int) -> None:
        """Raise ``DataError`` if the part that stands for this segment was made from other records."""
        if self.checksum != finished:
            raise DataError(
                f"{unit.slices[0].source.label} does not give what it gave before the run was interrupted; give the "
                "same input again, or start anew with --overwrite"
            )


def unit_records(unit: Unit, settings: Settings, meter: Meter | None = None) -> Iterator[Raw]:
    """All records of a unit, in order."""
    for part in unit.slices:
        yield from read_slice(part, settings.columns, settings.whole_files, settings.max_document_bytes, meter)


def unit_segments(unit: Unit, settings: Settings) -> Iterator[Segment]:
    """Group the records of a sequential unit into segments of about ``SEGMENT_BYTES``; at least one."""
    meter = Meter()
    number, size, checksum = 0, 0, 0
    gathered: list[Raw] = []
    for raw in unit_records(unit, settings, meter):
        if size >= SEGMENT_BYTES:
            yield Segment(number, gathered, False, meter.passed(), checksum)
            number, gathered, size, checksum = number + 1, [], 0, 0
        gathered.append(raw)
        checksum = _checksum(raw, checksum)
        size += _RECORD_BYTES + _size(raw.payload)
    yield Segment(number, gathered, True, meter.passed(), checksum)


def _checksum(raw: Raw, before: int) -> int:
    payload = raw.payload if isinstance(raw.payload, bytes) else repr(raw.payload).encode("utf-8", "surrogatepass")
    return zlib.crc32(payload, before)


def _size(payload: Any) -> int:
    if isinstance(payload, (bytes, str)):
        return len(payload)
    if isinstance(payload, Problem):
        return 0
    return sum(len(value) for value in payload.values() if isinstance(value, (bytes, str)))


def encode_unit(job: Job, unit: Unit) -> list[PartSummary]:
    """Make the single part of a unit of byte ranges or row groups."""
    summary = PartSummary(unit=unit.number, segment=0, last=True, read_bytes=unit.size)
    return [encode_records(job, summary, unit_records(unit, job.settings))]


def encode_stream(job: Job, unit: Unit, done: dict[int, int]) -> list[PartSummary]:
    """Make the parts of a sequential unit but those in ``done``, checksums by segment."""
    made = []
    for segment in unit_segments(unit, job.settings):
        if segment.number in done:
            segment.check(unit, done[segment.number])
        else:
            made += encode_segment(job, unit.number, segment)
    return made


def encode_segment(job: Job, unit: int, segment: Segment) -> list[PartSummary]:
    """Make one part of a sequential unit whose records were read elsewhere."""
    summary = PartSummary(
        unit=unit,
        segment=segment.number,
        last=segment.last,
        read_bytes=segment.read_bytes,
        checksum=segment.checksum,
    )
    return [encode_records(job, summary, segment.records)]


def encode_records(job: Job, summary: PartSummary, records: Iterable[Raw]) -> PartSummary:
    """Tokenize records and publish the part that ``summary`` names; completes and returns it.

    Raises:
        DataError: a record was rejected and the job says to stop.
    """
    settings = job.settings
    tokenizer = load_tokenizer(settings.tokenizer, settings.eos_token)
    end = np.array([tokenizer.eos_id], np.int32)
    filtered: Counter[str] = Counter()
    with PartWriter(job.folder, summary, token_dtype(tokenizer.vocab_size)) as part:
        for raw in records:
            summary.records += 1
            try:
                text = text_of(raw, settings)
                if not text or text.isspace():
                    summary.empty += 1
                elif failed := settings.filters.failed(text):
                    filtered[failed] += 1
                else:
                    size = len(text) if text.isascii() else len(text.encode())
                    part.add(np.concatenate((_encoded(text, tokenizer), end)), size)
            except RejectedError as error:
                if job.stop_on_error:
                    raise DataError(_complaint(raw, error.problem)) from None
                part.reject(rejected(raw, error.problem))
        summary.filtered = dict(sorted(filtered.items()))
    return summary


def _encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    tokens = tokenizer.encode(text)
    if (tokens == tokenizer.eos_id).any():
        # For instance where it stands for unknown characters as well.
        raise RejectedError("end token in text", "the tokenizer makes its end-of-document token of a part of the text")
    return tokens


def rejected(raw: Raw, problem: Problem) -> dict[str, Any]:
    """A line of the rejects file."""
    return {
        "source": raw.source.label,
        "position": raw.position,
        "reason": problem.category,
        "detail": problem.detail,
    }


def _complaint(raw: Raw, problem: Problem) -> str:
    return (
        f"{described(rejected(raw, problem), rows=raw.source.counts_rows)}; mend the input, or drop "
        "--on-error stop to leave such records out"
    )
