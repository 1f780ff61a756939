"""One indexed corpus as an endless sequence of packed samples, addressed by sample number alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from pretrain.command import told
from pretrain.data.indexed import IndexedDataset, index_path, tokens_path
from pretrain.data.manifest import read_manifest
from pretrain.data.order import SampleOrder
from pretrain.data.soundness import check_index
from pretrain.errors import DataError

PROBES = 64
"""Blocks of each file that the fingerprint of a corpus without a manifest looks at."""


class TokenCorpus:
    """One indexed corpus cut into windows of ``seq_length + 1`` tokens, ``seq_length`` apart.

    Documents are packed back to back; the last, partial window is left out. Every epoch visits each
    window once, in an order of its own.

    Args:
        prefix: path without ``.bin`` / ``.idx``.
        seq_length: tokens the model sees per sample.
        seed: of the order.
        check: look at every byte of the index; False where another process of this host does.

    Raises:
        DataError: the files are missing or damaged, disagree with their manifest, or hold less than one sample.
    """

    def __init__(self, prefix: str | Path, seq_length: int, seed: int, check: bool = True):
        self.prefix = str(prefix)
        self.seq_length = seq_length
        self.data = IndexedDataset(prefix)
        manifest = read_manifest(prefix)
        if manifest and (manifest.tokens, manifest.documents) != (self.data.num_tokens, self.data.num_documents):
            raise DataError(
                f"corpus {self.prefix} has {self.data.num_tokens} tokens in {self.data.num_documents} documents, its "
                f"manifest says {manifest.tokens} in {manifest.documents}; they are of different runs: preprocess again"
            )
        self._index = check_index(self.data, manifest.checksums.get("idx") if manifest else None) if check else None
        self.settle(wait=False)
        self.vocab_size = manifest.vocab_size if manifest else None
        self.tokenizer_sha256 = manifest.tokenizer_sha256 if manifest else None
        self.eos_id = manifest.eos_id if manifest else None
        self._id_limit = self.vocab_size
        if self.num_samples < 1:
            raise DataError(
                f"corpus {self.prefix} has {self.data.num_tokens} tokens, one sample needs {seq_length + 1}; "
                "give it more text or lower the sequence length"
            )
        self.order = SampleOrder(self.num_samples, seed)
        content = manifest.checksums if manifest else _content_digest(self.prefix)
        self.fingerprint = digest_of(content, seq_length, seed)

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return (self.data.num_tokens - 1) // self.seq_length

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number``, int64 ``(seq_length + 1,)``.

        Raises:
            DataError: an id is not in the vocabulary (of the manifest, or given to ``limit_ids``).
        """
        _, index = self.order.locate(number)
        tokens = self.data.tokens(index * self.seq_length, self.seq_length + 1).astype(np.int64)
        if self._id_limit is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._id_limit:
            raise DataError(
                f"corpus {self.prefix} holds token ids from {int(tokens.min())} to {int(tokens.max())} near token "
                f"{index * self.seq_length}, expected 0 to {self._id_limit - 1}; run "
                f"{told('corpus', 'verify', self.prefix)}"
            )
        return tokens

    def settle(self, wait: bool = True) -> None:
        """Raise ``DataError`` if the index is damaged; without ``wait``, if that is known by now."""
        if self._index is not None:
            self._index.require(wait)

    def limit_ids(self, vocab_size: int) -> None:
        """From here on ``sample`` refuses ids from ``vocab_size`` on, as a model of that many rows must."""
        self._id_limit = min(vocab_size, self._id_limit or vocab_size)

    def consumed(self, num_samples: int) -> dict[str, int]:
        """All of them, from this corpus."""
        return {self.prefix: num_samples}

    def sizes(self) -> dict[str, int]:
        """Samples in one epoch."""
        return {self.prefix: self.num_samples}


def digest_of(*parts: object) -> str:
    """sha256 over the printed form of simple values (dicts in sorted order)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content_digest(prefix: str) -> str:
    """Sizes and evenly spaced blocks of each file: cheap at any size, for corpora without a manifest."""
    digest = hashlib.sha256()
    for path in (index_path(prefix), tokens_path(prefix)):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for number in range(PROBES):
                file.seek(max(0, size - 4096) * number // (PROBES - 1))
                digest.update(file.read(4096))
    return digest.hexdigest()
