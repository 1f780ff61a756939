"""Corpora as endless sequences of packed samples, addressed by sample number alone.

``sample(n)`` depends on the corpus, the sequence length, the seed and n only: not on ranks, batch
sizes or what was drawn before. So the position of a run is one number, the samples it consumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.data.blend import Blend
from pretrain.data.indexed import IndexedDataset, index_path, tokens_path
from pretrain.data.manifest import read_manifest
from pretrain.data.order import SampleOrder
from pretrain.errors import DataError, nearest

VOCAB_PADDING = 1024
"""A model may have up to this many rows more than the tokenizer (padding for tensor parallelism)."""


class Corpus(Protocol):
    """What the loader needs to know of a corpus or a blend of them."""

    seq_length: int
    vocab_size: int | None
    tokenizer_sha256: str | None
    eos_id: int | None
    fingerprint: str

    @property
    def num_samples(self) -> int:
        """Samples in one epoch (in a blend: the sum over its corpora)."""

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number`` (0 = the run's first), int64 ``(seq_length + 1,)``."""

    def consumed(self, num_samples: int) -> dict[str, int]:
        """Samples each source gave among the first ``num_samples``, by path."""


class TokenCorpus:
    """One indexed corpus cut into windows of ``seq_length + 1`` tokens, ``seq_length`` apart.

    Documents are packed back to back; the last, partial window is left out. Every epoch visits each
    window once, in an order of its own.

    Args:
        prefix: path without ``.bin`` / ``.idx``.
        seq_length: tokens the model sees per sample.
        seed: of the order.

    Raises:
        DataError: the files are missing or damaged, disagree with their manifest, or hold less than one sample.
    """

    def __init__(self, prefix: str | Path, seq_length: int, seed: int):
        self.prefix = str(prefix)
        self.seq_length = seq_length
        self.data = IndexedDataset(prefix)
        manifest = read_manifest(prefix)
        if manifest and (manifest.tokens, manifest.documents) != (self.data.num_tokens, self.data.num_documents):
            raise DataError(
                f"corpus {self.prefix} has {self.data.num_tokens} tokens in {self.data.num_documents} documents, its "
                f"manifest says {manifest.tokens} in {manifest.documents}; they are of different runs: preprocess again"
            )
        self.vocab_size = manifest.vocab_size if manifest else None
        self.tokenizer_sha256 = manifest.tokenizer_sha256 if manifest else None
        self.eos_id = manifest.eos_id if manifest else None
        if self.num_samples < 1:
            raise DataError(
                f"corpus {self.prefix} has {self.data.num_tokens} tokens, one sample needs {seq_length + 1}; "
                "give it more text or lower the sequence length"
            )
        self.order = SampleOrder(self.num_samples, seed)
        content = manifest.digest() if manifest else _content_digest(self.prefix)
        self.fingerprint = _digest(content, seq_length, seed)

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return (self.data.num_tokens - 1) // self.seq_length

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number``, int64 ``(seq_length + 1,)``."""
        _, index = self.order.locate(number)
        return self.data.tokens(index * self.seq_length, self.seq_length + 1).astype(np.int64)

    def consumed(self, num_samples: int) -> dict[str, int]:
        """All of them, from this corpus."""
        return {self.prefix: num_samples}


class BlendedCorpus:
    """Several corpora interleaved in exact proportions of samples; each goes through its own epochs.

    Args:
        parts: ``(corpus, weight)`` pairs; only the ratios of the weights matter.

    Raises:
        DataError: weights that are not positive, or corpora made with different tokenizers.
    """

    def __init__(self, parts: Sequence[tuple[TokenCorpus, float]]):
        self.blend = Blend([weight for _, weight in parts])
        self.corpora = [corpus for corpus, _ in parts]
        _check_same_tokenizer(self.corpora)
        first = self.corpora[0]
        self.seq_length = first.seq_length
        self.vocab_size, self.tokenizer_sha256, self.eos_id = first.vocab_size, first.tokenizer_sha256, first.eos_id
        self.fingerprint = _digest(*((c.fingerprint, w) for c, w in zip(self.corpora, self.blend.weights, strict=True)))

    @property
    def num_samples(self) -> int:
        """Samples in one epoch of every corpus."""
        return sum(corpus.num_samples for corpus in self.corpora)

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number``, int64 ``(seq_length + 1,)``."""
        which, own_number = self.blend.locate(number)
        return self.corpora[which].sample(own_number)

    def consumed(self, num_samples: int) -> dict[str, int]:
        """Samples each corpus gave among the first ``num_samples``, by prefix."""
        given: dict[str, int] = {}
        for corpus, count in zip(self.corpora, self.blend.counts(num_samples), strict=True):
            given[corpus.prefix] = given.get(corpus.prefix, 0) + count
        return given


def open_corpus(spec: str | Sequence[dict[str, Any]], seq_length: int, seed: int) -> TokenCorpus | BlendedCorpus:
    """Open a corpus by its prefix, or a blend by a list of ``{"path": prefix, "weight": number}``.

    Raises:
        DataError: see ``TokenCorpus`` and ``BlendedCorpus``; or a spec of another form.
    """
    if isinstance(spec, (str, Path)):
        return TokenCorpus(spec, seq_length, seed)
    if not isinstance(spec, Sequence) or not spec:
        raise DataError(f"data is {spec!r}, expected a path prefix or a list of {{path, weight}}")
    parts = []
    for number, entry in enumerate(spec):
        path, weight = _blend_entry(entry)
        # A seed of its own, so that a corpus listed twice does not give the same samples twice.
        parts.append((TokenCorpus(path, seq_length, seed + number), weight))
    return BlendedCorpus(parts)


def check_vocabulary(corpus: Corpus, model_vocab_size: int, tokenizer_sha256: str | None = None) -> None:
    """Raise ``DataError`` unless the corpus' ids fit a model of ``model_vocab_size`` rows and its tokenizer.

    A model may be up to ``VOCAB_PADDING`` rows larger. Corpora without a manifest pass: their ids are
    not known to the reader.
    """
    found = corpus.vocab_size
    if found is not None and not found <= model_vocab_size < found + VOCAB_PADDING:
        raise DataError(
            f"the data has a vocabulary of {found}, the model of {model_vocab_size}; set the model's vocab_size to "
            f"{found} or preprocess with the model's tokenizer"
        )
    if tokenizer_sha256 and corpus.tokenizer_sha256 and tokenizer_sha256 != corpus.tokenizer_sha256:
        raise DataError(
            f"the data was made with tokenizer {corpus.tokenizer_sha256[:12]}, the model expects "
            f"{tokenizer_sha256[:12]} (sha256); preprocess with the model's tokenizer"
        )


def _blend_entry(entry: Any) -> tuple[str, float]:
    if not isinstance(entry, dict) or "path" not in entry:
        raise DataError(f"a blend entry is {entry!r}, expected {{path: PREFIX, weight: NUMBER}}")
    for key in entry:
        if key not in ("path", "weight"):
            raise DataError(f"blend entry has unknown key '{key}'{nearest(key, ('path', 'weight'))}")
    return str(entry["path"]), entry.get("weight", 1.0)


def _check_same_tokenizer(corpora: Sequence[TokenCorpus]) -> None:
    known = [c for c in corpora if c.tokenizer_sha256 is not None]
    for corpus in known[1:]:
        if (corpus.tokenizer_sha256, corpus.vocab_size) != (known[0].tokenizer_sha256, known[0].vocab_size):
            raise DataError(
                f"corpora {known[0].prefix} and {corpus.prefix} were made with different tokenizers "
                f"({known[0].tokenizer_sha256!s:.12} of {known[0].vocab_size} ids, {corpus.tokenizer_sha256!s:.12} of "
                f"{corpus.vocab_size}); preprocess them with one tokenizer"
            )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _content_digest(prefix: str) -> str:
    """Sizes and 64 evenly spaced blocks of each file: cheap at any size, for corpora without a manifest."""
    digest = hashlib.sha256()
    for path in (index_path(prefix), tokens_path(prefix)):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for number in range(64):
                file.seek(max(0, size - 4096) * number // 63)
                digest.update(file.read(4096))
    return digest.hexdigest()
