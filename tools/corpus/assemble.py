"""From finished parts to the published corpus, or to a training and a validation corpus."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.manifest import manifest_path
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError
from tools.corpus.parts import Part


@dataclass(frozen=True, kw_only=True)
class Output:
    """One corpus to write: its prefix, and the range of document hashes that it takes."""

    prefix: str
    name: str = "all"
    low: float = 0.0
    high: float = 1.0


def outputs_for(prefix: str, validation_fraction: float) -> list[Output]:
    """``PREFIX``, or ``PREFIX_train`` and ``PREFIX_validation`` where a fraction is kept for validation."""
    if not validation_fraction:
        return [Output(prefix=prefix)]
    return [
        Output(prefix=f"{prefix}_train", name="train", low=validation_fraction),
        Output(prefix=f"{prefix}_validation", name="validation", high=validation_fraction),
    ]


def document_place(tokens: np.ndarray) -> float:
    """A number in [0, 1) that depends on the document's token ids only: equal documents stay together."""
    digest = hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").data, digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def assemble(parts: Iterable[Path], outputs: list[Output], dtype: np.dtype) -> list[IndexedWriter]:
    """Write every output from ``parts`` in order and publish the files (not yet the manifests).

    Raises:
        DataError: an output would be empty; nothing is published then.
    """
    with ExitStack() as stack:
        writers = [IndexedWriter(output.prefix, dtype) for output in outputs]
        for writer in writers:
            stack.callback(writer.discard)
        for path in parts:
            part = Part(path)
            _deal(part.tokens(), part.lengths(), outputs, writers)
        for output, writer in zip(outputs, writers, strict=True):
            if not writer.num_documents:
                raise DataError(_empty(output, sum(w.num_documents for w in writers)))
        for writer in writers:
            manifest_path(writer.prefix).unlink(missing_ok=True)
        for writer in writers:
            writer.finish()
    return writers


def _deal(tokens: np.ndarray, lengths: np.ndarray, outputs: list[Output], writers: list[IndexedWriter]) -> None:
    if len(outputs) == 1:
        writers[0].add_documents(tokens, lengths)
        return
    places = np.array([document_place(document) for document in _documents(tokens, lengths)])
    for output, writer in zip(outputs, writers, strict=True):
        taken = (places >= output.low) & (places < output.high)
        writer.add_documents(tokens[np.repeat(taken, lengths)], lengths[taken])


def _documents(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for length in lengths.tolist():
        yield tokens[start : start + length]
        start += length


def _empty(output: Output, documents: int) -> str:
    if not documents:
        return "the input gives no document with text in it, so nothing was written; look at --input and --text-column"
    return (
        f"the {output.name} split got none of the {documents} documents, so nothing was written; choose another "
        "--validation-fraction or give more documents"
    )


def write_rejects(parts: Iterable[Path], path: Path) -> None:
    """Publish the rejected records of all parts, in order; no file where there are none."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(Part(part).rejects())
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if size:
        os.replace(temporary, path)
    else:
        temporary.unlink()
        path.unlink(missing_ok=True)
