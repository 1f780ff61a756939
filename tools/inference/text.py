"""How many bytes of text tokens stand for, so that models of different vocabularies can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pretrain.data.corpus import Corpus
from pretrain.data.manifest import read_manifest
from pretrain.errors import DataError

from .model import Loaded
from .tokenizer import find_tokenizer


def bytes_of(
    loaded: Loaded, corpus: Corpus, samples: int, paths: Sequence[str], tokenizer: str | None
) -> tuple[int | None, str]:
    """UTF-8 bytes of the text that the first ``samples`` samples of ``corpus`` predict, or None and why not.

    They are counted in the text itself; without the corpus's tokenizer, by what its manifest says of all of it.

    Args:
        paths: prefixes of the corpora.
        tokenizer: named by the user; then it has to be there.

    Raises:
        DataError: ``tokenizer`` is missing, or another model's.
    """
    try:
        found = find_tokenizer(loaded, tokenizer)
    except DataError as error:
        if tokenizer is not None:
            raise
        return _by_manifest(corpus, samples, paths), str(error)
    if found.sha256 != corpus.tokenizer_sha256:
        known = "the model's tokenizer is not the one that made the data"
        none = "the data has no manifest, which would tell what tokenizer made it"
        return _by_manifest(corpus, samples, paths), known if corpus.tokenizer_sha256 else none
    end = corpus.eos_id if corpus.eos_id is not None else found.eos_id
    return sum(predicted_bytes(corpus.sample(n).tolist(), found.decode, end) for n in range(samples)), ""


def _by_manifest(corpus: Corpus, samples: int, paths: Sequence[str]) -> int | None:
    manifest = read_manifest(paths[0]) if len(paths) == 1 else None
    # Preprocessing counts all that it read: of one of two splits, or where duplicates were dropped, that is too much.
    if manifest is None or not manifest.tokens or manifest.counts.get("documents") != manifest.documents:
        return None
    return round(samples * corpus.seq_length * manifest.counts.get("text_bytes", 0) / manifest.tokens) or None


def predicted_bytes(tokens: Sequence[int], decode: Callable[[Any], str], end: int | None) -> int:
    """Of all tokens but the first; ends of documents are no text.

    Documents are decoded whole: a piece at the beginning of a text has no space before it, within one it may.
    """
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == end:
            documents.append([])
        else:
            documents[-1].append(token)
    whole = sum(len(decode(document).encode()) for document in documents if document)
    return whole - (len(decode(tokens[:1]).encode()) if tokens[0] != end else 0)
