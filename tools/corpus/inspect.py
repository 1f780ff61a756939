"""What a corpus holds: counts, histograms, and documents or samples as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.data.corpus import TokenCorpus
from pretrain.data.indexed import IndexedDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import DataError

from .progress import progress

ENTRIES = 1 << 20
"""Index entries or tokens counted together."""


def overview(prefix: str, tokenizer_path: str | None, top: int) -> dict[str, Any]:
    """Counts, the histogram of document lengths by powers of two, and the ``top`` commonest tokens."""
    data = IndexedDataset(prefix)
    tokenizer = _matching(prefix, tokenizer_path) if tokenizer_path else None
    counts = token_counts(data)
    commonest = np.argsort(counts, kind="stable")[::-1][:top]
    return {
        "prefix": prefix,
        "dtype": data.dtype.name,
        "documents": data.num_documents,
        "tokens": data.num_tokens,
        "distinct_tokens": int((counts > 0).sum()),
        "tokens_per_document": length_histogram(data),
        "commonest_tokens": {
            _name(int(token), tokenizer): int(counts[token]) for token in commonest if counts[token] > 0
        },
    }


def length_histogram(data: IndexedDataset) -> dict[str, int]:
    """Documents by their number of tokens, in bins from one power of two to the next."""
    bins = np.zeros(65, np.int64)
    for start in range(0, data.num_documents, ENTRIES):
        boundaries = np.asarray(data.boundaries[start : start + ENTRIES + 1])
        sequences = np.asarray(data.lengths[boundaries[0] : boundaries[-1]], np.int64)
        totals = np.concatenate(([0], np.cumsum(sequences)))
        lengths = np.diff(totals[boundaries - boundaries[0]])
        # frexp gives the number of binary digits.
        bins += np.bincount(np.frexp(lengths.astype(np.float64))[1], minlength=65)
    return {_bin_name(number): int(count) for number, count in enumerate(bins) if count}


def _bin_name(digits: int) -> str:
    return f"{2 ** (digits - 1)}-{2**digits - 1}" if digits > 1 else str(digits)


def token_counts(data: IndexedDataset) -> np.ndarray:
    """How often each token id occurs, ``(largest id + 1,)``."""
    counts = np.zeros(0, np.int64)
    for start in progress("count", iterable=range(0, data.num_tokens, ENTRIES)):
        some = np.bincount(data.tokens(start, min(ENTRIES, data.num_tokens - start)), minlength=len(counts))
        some[: len(counts)] += counts
        counts = some
    return counts


def document(prefix: str, number: int, tokenizer_path: str | None) -> dict[str, Any]:
    """One document: its token ids, and its text where there is a tokenizer."""
    data = IndexedDataset(prefix)
    if not 0 <= number < data.num_documents:
        raise DataError(f"--document is {number}, expected a number from 0 to {data.num_documents - 1}")
    return _shown(prefix, "document", number, data.document(number), tokenizer_path)


def sample(prefix: str, number: int, seq_length: int, seed: int, tokenizer_path: str | None) -> dict[str, Any]:
    """One packed sample as training draws it: its token ids, and its text where there is a tokenizer."""
    if number < 0 or seq_length < 1:
        raise DataError(f"--sample is {number} and --seq-length {seq_length}, expected at least 0 and at least 1")
    corpus = TokenCorpus(prefix, seq_length, seed)
    epoch, index = corpus.order.locate(number)
    shown = _shown(prefix, "sample", number, corpus.sample(number), tokenizer_path)
    return {**shown, "epoch": epoch, "first_token": index * seq_length}


def _shown(prefix: str, kind: str, number: int, tokens: np.ndarray, tokenizer_path: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"prefix": prefix, kind: number, "tokens": len(tokens)}
    if tokenizer_path:
        return {**shown, "text": _matching(prefix, tokenizer_path).decode(tokens)}
    return {**shown, "ids": [int(token) for token in tokens]}


def _matching(prefix: str, path: str) -> Tokenizer:
    """The tokenizer, checked against the manifest's hash."""
    manifest = read_manifest(prefix)
    tokenizer = load_tokenizer(path, eos_id=manifest.eos_id if manifest else None)
    if manifest and manifest.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"corpus {prefix} was made with tokenizer {manifest.tokenizer_sha256[:12]}, {path} is "
            f"{tokenizer.sha256[:12]} (sha256); give the tokenizer it was made with"
        )
    return tokenizer


def _name(token: int, tokenizer: Tokenizer | None) -> str:
    return f"{token} {tokenizer.decode(np.array([token]))!r}" if tokenizer else str(token)
