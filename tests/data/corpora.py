"""Small corpora whose content tells where a sample came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.data.manifest import Manifest
from pretrain.data.writer import IndexedWriter


def make_corpus(prefix: Path, tokens: int, vocab_size: int = 1000, first: int = 0, tokenizer: str = "a" * 64) -> str:
    """A corpus whose token at position p is ``(first + p) % vocab_size``, in documents of 10."""
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        flat = (np.arange(tokens) + first) % vocab_size
        for start in range(0, tokens, 10):
            writer.add(flat[start : start + 10])
    Manifest(
        tokenizer_sha256=tokenizer,
        vocab_size=vocab_size,
        eos_id=2,
        dtype="uint16",
        documents=writer.num_documents,
        tokens=writer.num_tokens,
        checksums=writer.checksums,
    ).write(prefix)
    return str(prefix)
