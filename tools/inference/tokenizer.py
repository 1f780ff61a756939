"""The tokenizer of a trained model: named, or found by what its run says."""

from __future__ import annotations

from pathlib import Path

from pretrain import outside
from pretrain.data.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import DataError
from pretrain.files import sha256_of
from pretrain.models import inventory_of
from pretrain.paths import why_no_file

from ..checkpoints.source import tokenizer_in
from .model import Loaded
from .places import in_run, manifests

LARGEST = 64 * outside.MEGABYTE
"""Of a file that may be a tokenizer."""


def find_tokenizer(loaded: Loaded, given: str | None = None, eos_token: str | None = None) -> Tokenizer:
    """The tokenizer ``given``, the run's ``data.tokenizer``, the one beside its corpora that made them, or the one that
    was exported.

    Args:
        eos_token: the end-of-document token; default: that of the run, of its corpora, or the tokenizer's own.

    Raises:
        DataError: there is none, or it has more tokens than the model.
    """
    known = next((manifest for _, manifest in manifests(loaded)), None)
    path = given or _of_run(loaded) or _beside_corpora(loaded) or _of_export(loaded)
    if path is None:
        named = loaded.run.data.tokenizer if loaded.run else None
        why = f"its data.tokenizer {named} {why_no_file(named)}" if named else "neither model nor run names one"
        raise DataError(
            f"no tokenizer was found for {loaded.place}: {why}; name it with --tokenizer FILE, a SentencePiece .model "
            "or a tokenizer.json"
        )
    eos_id = loaded.run.data.eos_id if loaded.run else None
    if eos_id is None and known is not None:
        eos_id = known.eos_id
    found = load_tokenizer(path, eos_token, None if eos_token else eos_id)
    rows = inventory_of(loaded.settings).shape.vocabulary
    if found.vocab_size > rows:
        raise DataError(
            f"tokenizer {path} has {found.vocab_size} tokens, the model {rows}: it is another model's; name the right "
            "one with --tokenizer"
        )
    if known is not None and known.tokenizer_sha256 != found.sha256:
        loaded.remarks.append(
            f"tokenizer {path} (sha256 {found.sha256[:12]}) is not the file that made the run's corpus "
            f"({known.tokenizer_sha256[:12]})"
        )
    return found


def _of_run(loaded: Loaded) -> str | None:
    named = loaded.run.data.tokenizer if loaded.run else None
    found = in_run(loaded, named) if named else None
    return found if found is not None and Path(found).is_file() else None


def _beside_corpora(loaded: Loaded) -> str | None:
    """A file in the folder of a corpus whose checksum is in the corpus's manifest."""
    for folder, manifest in manifests(loaded):
        for path in sorted([*folder.glob("*.model"), *folder.glob("*.json")]):
            small = path.is_file() and path.stat().st_size <= LARGEST
            if small and sha256_of(path) == manifest.tokenizer_sha256:
                return str(path)
    return None


def _of_export(loaded: Loaded) -> str | None:
    if loaded.checkpoint is not None:
        return None
    name, passed = tokenizer_in(loaded.place)
    loaded.remarks.extend(passed)
    return str(loaded.place / name) if name is not None else None
