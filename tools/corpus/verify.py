"""Every check of a corpus that costs a pass over it: the index, the token ids, and the checksums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pretrain.data.indexed import IndexedDataset, index_path, named_by_file, tokens_path
from pretrain.data.manifest import Manifest, manifest_path, read_manifest
from pretrain.data.soundness import index_problems
from pretrain.errors import DataError
from pretrain.files import sha256_of

from .progress import progress

ENTRIES = 1 << 20
"""Index entries or tokens looked at together."""


def verify(prefix: str, vocab_size: int | None, eos_id: int | None) -> list[str]:
    """Every problem of the corpus at ``prefix``, one sentence each; none: it is sound.

    Args:
        prefix: path without ``.bin`` / ``.idx``.
        vocab_size: ids must be below it; default: the manifest's.
        eos_id: every document must end with it; default: the manifest's.

    Raises:
        DataError: the corpus is missing.
    """
    if not index_path(prefix).exists() and not tokens_path(prefix).exists():
        why = f", {named}" if (named := named_by_file(prefix)) else ""
        raise DataError(f"corpus {prefix} does not exist; expected {prefix}.bin and {prefix}.idx{why}")
    try:
        manifest, data = read_manifest(prefix), IndexedDataset(prefix, allow_empty=True)
    except DataError as error:
        return [str(error)]
    problems = [*index_problems(data), *_manifest(data, manifest)]
    if problems:
        # What the tokens say depends on the index: no use going on.
        return problems + list(_checksums(prefix, manifest))
    if manifest:
        vocab_size = manifest.vocab_size if vocab_size is None else vocab_size
        eos_id = manifest.eos_id if eos_id is None else eos_id
    problems += _tokens(data, vocab_size)
    if eos_id is not None:
        problems += _ends(data, eos_id)
    return problems + list(_checksums(prefix, manifest))


def _manifest(data: IndexedDataset, manifest: Manifest | None) -> Iterator[str]:
    if manifest is None:
        return
    path = manifest_path(data.prefix)
    if path.read_bytes() != manifest.to_bytes():
        yield f"{path} was changed: it is not written as the tools write it"
    found = {"tokens": data.num_tokens, "documents": data.num_documents, "dtype": data.dtype.name}
    for name, value in found.items():
        if getattr(manifest, name) != value:
            yield f"{data.prefix} has {name} {value}, its manifest says {getattr(manifest, name)}"


def _tokens(data: IndexedDataset, vocab_size: int | None) -> Iterator[str]:
    if vocab_size is None and np.issubdtype(data.dtype, np.unsignedinteger):
        return
    for start in progress("tokens", iterable=range(0, data.num_tokens, ENTRIES)):
        tokens = data.tokens(start, min(ENTRIES, data.num_tokens - start))
        wrong = np.flatnonzero((tokens < 0) | (tokens >= (vocab_size or np.iinfo(data.dtype).max)))
        if len(wrong):
            place = start + int(wrong[0])
            yield (
                f"{tokens_path(data.prefix)}: token {place} is {int(tokens[wrong[0]])}, expected an id from 0 to "
                f"{vocab_size - 1 if vocab_size else 'the largest'}"
            )
            return


def _ends(data: IndexedDataset, eos_id: int) -> Iterator[str]:
    """The last token of every document (of one sequence or more)."""
    for start in range(0, data.num_documents, ENTRIES):
        boundaries = np.asarray(data.boundaries[start : start + ENTRIES + 1])
        last = boundaries[1:] - 1
        ends = np.asarray(data.pointers[boundaries[0] : boundaries[-1]])[last - boundaries[0]] // data.dtype.itemsize
        ends += np.asarray(data.lengths[boundaries[0] : boundaries[-1]])[last - boundaries[0]] - 1
        for number, place in enumerate(ends.tolist(), start):
            token = int(data.tokens(place, 1)[0]) if place >= 0 else None
            if token != eos_id:
                yield f"{data.prefix}: document {number} ends with token {token}, expected the end token {eos_id}"
                return


def _checksums(prefix: str, manifest: Manifest | None) -> Iterator[str]:
    if manifest is None:
        return
    for suffix, expected in manifest.checksums.items():
        path = Path(f"{prefix}.{suffix}")
        with progress(path.name, total=path.stat().st_size, unit="B", unit_scale=True) as bar:
            found = sha256_of(path, bar.update)
        if found != expected:
            yield f"{path} was changed: its sha256 is {found[:12]}, its manifest says {expected[:12]}"
