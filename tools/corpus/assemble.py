"""From chunks of documents to the published corpus, or to a training and a validation corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from pretrain.data.manifest import manifest_path
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError

from .chunks import Chunk


class EmptySplitError(DataError):
    """One of several corpora would get no document."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One corpus to write: its prefix, and the range of document digests that it takes."""

    prefix: str
    split: str = "all"
    low: float = 0.0
    high: float = 1.0


def outputs_for(prefix: str, validation_fraction: float) -> list[Output]:
    """``PREFIX``, or ``PREFIX_train`` and ``PREFIX_validation`` where a fraction is kept for validation."""
    if not validation_fraction:
        return [Output(prefix=prefix)]
    return [
        Output(prefix=f"{prefix}_train", split="train", low=validation_fraction),
        Output(prefix=f"{prefix}_validation", split="validation", high=validation_fraction),
    ]


def assemble(
    chunks: Iterable[Chunk],
    outputs: Sequence[Output],
    dtype: np.dtype,
    duplicate: np.ndarray | None = None,
    allow_empty: bool = False,
) -> list[IndexedWriter]:
    """Write every output and publish the files, but not yet the manifests.

    Equal documents have equal digests, so they land on the same side of a split.

    Args:
        chunks: all documents, in order; with digests if there is more than one output.
        outputs: what to write.
        dtype: of the token ids.
        duplicate: bool ``(documents,)``, the documents to leave out.
        allow_empty: accept an output without documents.

    Raises:
        EmptySplitError: an output would be empty; nothing is published then.
    """
    with ExitStack() as stack:
        writers = [IndexedWriter(output.prefix, dtype) for output in outputs]
        for writer in writers:
            stack.callback(writer.discard)
        number = 0
        for chunk in chunks:
            kept = np.ones(len(chunk.ends), bool)
            if duplicate is not None:
                kept = ~duplicate[number : number + len(kept)]
            number += len(kept)
            for output, writer in zip(outputs, writers, strict=True):
                writer.add_sequences(*chunk.select(kept & _share(chunk, output) if len(outputs) > 1 else kept))
        for output, writer in zip(outputs, writers, strict=True):
            if not writer.num_tokens and not allow_empty:
                made = sum(other.num_documents for other in writers)
                raise EmptySplitError(
                    f"the {output.split} split got none of the {made} documents, so nothing was written; choose "
                    "another --validation-fraction or give more documents"
                )
        for writer in writers:
            manifest_path(writer.prefix).unlink(missing_ok=True)
        for writer in writers:
            writer.finish()
    return writers


def _share(chunk: Chunk, output: Output) -> np.ndarray:
    """The documents whose digest, as a number in [0, 1), falls into the output's range."""
    # 53 bits are what a float64 holds exactly, so that no place rounds up to 1.
    place = (chunk.digests["low"] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (place >= output.low) & (place < output.high)
