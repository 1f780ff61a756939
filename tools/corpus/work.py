"""What a worker does: turn the records of a unit into parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.indexed import token_dtype
from pretrain.errors import DataError
from tools.corpus.extract import RejectedError, Settings, text_of
from tools.corpus.parts import PartSummary, write_part
from tools.corpus.readers import Problem, Raw, read_slice
from tools.corpus.sources import Unit
from tools.corpus.tokenizers import load_tokenizer

SEGMENT_BYTES = 8 << 20
"""Payload in one segment of a sequential unit."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task of a run has in common."""

    settings: Settings
    folder: Path
    """Where parts go."""
    stop_on_error: bool = False


def unit_records(unit: Unit, settings: Settings) -> Iterator[Raw]:
    """All records of a unit, in order."""
    for part in unit.slices:
        yield from read_slice(part, settings.columns, settings.whole_files, settings.max_document_bytes)


def segments(records: Iterable[Raw]) -> Iterator[tuple[int, list[Raw], bool]]:
    """Group a stream of records into ``(number, records, last)`` of about ``SEGMENT_BYTES`` each; at least one."""
    number, size = 0, 0
    gathered: list[Raw] = []
    for raw in records:
        if size >= SEGMENT_BYTES:
            yield number, gathered, False
            number, gathered, size = number + 1, [], 0
        gathered.append(raw)
        size += _size(raw.payload)
    yield number, gathered, True


def _size(payload: Any) -> int:
    if isinstance(payload, (bytes, str)):
        return len(payload)
    if isinstance(payload, Problem):
        return 0
    return sum(len(value) for value in payload.values() if isinstance(value, str))


def encode_unit(job: Job, unit: Unit) -> list[PartSummary]:
    """Make the single part of a unit of byte ranges or row groups."""
    summary = PartSummary(unit=unit.number, segment=0, last=True, dtype="", read_bytes=unit.size)
    return [encode_records(job, summary, unit_records(unit, job.settings))]


def encode_stream(job: Job, unit: Unit, done: frozenset[int]) -> list[PartSummary]:
    """Make the parts of a sequential unit but those in ``done``."""
    made = []
    for number, records, last in segments(unit_records(unit, job.settings)):
        if number not in done:
            made += encode_segment(job, unit.number, number, records, last)
    return made


def encode_segment(job: Job, unit: int, number: int, records: list[Raw], last: bool) -> list[PartSummary]:
    """Make one part of a sequential unit whose records were read elsewhere."""
    read = sum(_size(raw.payload) for raw in records)
    summary = PartSummary(unit=unit, segment=number, last=last, dtype="", read_bytes=read)
    return [encode_records(job, summary, records)]


def encode_records(job: Job, summary: PartSummary, records: Iterable[Raw]) -> PartSummary:
    """Tokenize records and publish the part that ``summary`` names.

    Raises:
        DataError: a record was rejected and the job says to stop.
    """
    tokenizer = load_tokenizer(job.settings.tokenizer, job.settings.eos_token)
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.eos_id], dtype)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    rejects: list[dict[str, Any]] = []
    for raw in records:
        summary.records += 1
        try:
            text = text_of(raw, job.settings)
        except RejectedError as error:
            if job.stop_on_error:
                raise DataError(_complaint(raw, error.problem)) from None
            rejects.append(_reject(raw, error.problem))
            continue
        if not text or text.isspace():
            summary.empty += 1
            continue
        tokens = tokenizer.encode(text)
        pieces += [tokens.astype(dtype), end]
        lengths.append(len(tokens) + 1)
        summary.text_bytes += len(text) if text.isascii() else len(text.encode())
    flat = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    summary.dtype, summary.documents, summary.tokens = dtype.name, len(lengths), len(flat)
    summary.rejected = dict(sorted(Counter(reject["reason"] for reject in rejects).items()))
    write_part(job.folder, summary, flat, np.array(lengths, np.int32), rejects)
    return summary


def _reject(raw: Raw, problem: Problem) -> dict[str, Any]:
    return {
        "source": raw.source.label,
        "position": raw.position,
        "reason": problem.category,
        "detail": problem.detail,
    }


def _complaint(raw: Raw, problem: Problem) -> str:
    place = "row" if raw.source.kind in ("parquet", "dataset") else "byte"
    return (
        f"{raw.source.label}, {place} {raw.position}: {problem.category} ({problem.detail}); mend the input, or drop "
        "--on-error stop to leave such records out"
    )
