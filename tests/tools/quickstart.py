"""A folder as pages of documentation expect it: a checkout in which the quickstart has made its corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.data.tokenizers import load_tokenizer
from pretrain.data.writer import IndexedWriter
from tests.pages import link_checkout
from tests.tools.texts import make_documents


def lay_quickstart(folder: Path, model: str) -> None:
    """Put the checkout, a small corpus and the tokenizer ``model`` where the quickstart has them."""
    link_checkout(folder)
    data = folder / "data" / "quickstart"
    data.mkdir(parents=True)
    (data / "tokenizer.model").symlink_to(model)
    tokenizer = load_tokenizer(model)
    for name in ("train", "validation"):
        with IndexedWriter(data / f"python_{name}", np.dtype(np.uint16)) as writer:
            for document in make_documents(100):
                writer.add(tokenizer.encode(document).astype(np.uint16))
