"""``PREFIX.manifest.json``: what a corpus is made of, written last and checked by its own digest.

The manifest says nothing that differs between two runs over the same input (no times, no number of
workers), so equal input and settings give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.data.writer import publish
from pretrain.errors import DataError

FORMAT = 1


def manifest_path(prefix: str | Path) -> Path:
    """``PREFIX.manifest.json``."""
    return Path(f"{prefix}.manifest.json")


@dataclass(kw_only=True)
class Manifest:
    """Facts of one corpus."""

    tokenizer_sha256: str
    """Of the tokenizer file that made the token ids."""
    vocab_size: int
    """Ids run from 0 to ``vocab_size - 1``."""
    eos_id: int
    """The end-of-document token."""
    dtype: str
    """NumPy name of the token dtype."""
    documents: int
    tokens: int
    checksums: dict[str, str]
    """sha256 of the files, by suffix: ``bin``, ``idx``."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """What was read, in order: path and size in bytes where there are any."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of preprocessing that shape the output."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records read, rejected (by reason), and bytes of text kept."""
    format: int = FORMAT

    def digest(self) -> str:
        """sha256 over every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content; ``verify`` compares it byte for byte."""
        return (json.dumps({**asdict(self), "digest": self.digest()}, indent=1, sort_keys=True) + "\n").encode()

    def write(self, prefix: str | Path) -> None:
        """Publish the manifest of ``prefix``."""
        publish(manifest_path(prefix), [self.to_bytes()])


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of ``prefix``, or None where there is none (as for Megatron's own files).

    Raises:
        DataError: it is not JSON, lacks a field, or its digest does not match.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    remedy = "preprocess the corpus again, or remove the manifest to use the corpus without its checks"
    names = [part.name for part in fields(Manifest)]
    try:
        given = outside.read_json(path)
        wrong = _misfit(given, [*names, "digest"])
    except (OSError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise DataError(f"{path} is not a manifest ({wrong}), expected JSON with {', '.join(names)}, digest; {remedy}")
    digest = given.pop("digest")
    manifest = Manifest(**given)
    if manifest.digest() != digest:
        raise DataError(f"{path} was changed: its digest is {manifest.digest()[:12]}, it says {digest!s:.12}; {remedy}")
    return manifest


def _misfit(given: Any, names: list[str]) -> str:
    """What keeps ``given`` from being a manifest of the fields ``names``; empty if nothing does."""
    if not isinstance(given, dict):
        return "it is no JSON object"
    required = {part.name for part in fields(Manifest) if part.default is MISSING and part.default_factory is MISSING}
    lacking, unknown = sorted({*required, "digest"} - given.keys()), sorted(given.keys() - set(names))
    return "; ".join([f"it has no {name}" for name in lacking] + [f"{name:.40} is not known" for name in unknown])
