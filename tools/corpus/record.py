"""What a run leaves on record: the manifest, its list of sources, and its counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pretrain.data.manifest import Manifest
from pretrain.data.tokenizers import Tokenizer
from pretrain.data.writer import IndexedWriter

from .assemble import Output
from .parts import PartSummary
from .sources import Source

LISTED_SOURCES = 64
"""A manifest names this many sources one by one; more are told by number, size and hash of the list."""


def describe_sources(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """For the manifest: each source, or where there are many, their number, size and the hash of their list."""
    listed = [_described(source) for source in sources]
    if len(listed) <= LISTED_SOURCES:
        return listed
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    size = sum(source.size for source in sources)
    return [{"files": len(listed), "bytes": size, "first": listed[0], "last": listed[-1], "list_sha256": digest}]


def _described(source: Source) -> dict[str, Any]:
    if source.dataset:
        return {"dataset": source.label, "config": source.dataset[0], "split": source.dataset[1]}
    return {"path": source.label, "bytes": source.size}


def total(summaries: Iterable[PartSummary]) -> dict[str, int]:
    """Sums over all parts."""
    counts = dict.fromkeys(("records", "documents", "text_bytes", "empty"), 0)
    reasons: dict[str, Counter[str]] = {"filtered": Counter(), "rejected": Counter()}
    for summary in summaries:
        for name in counts:
            counts[name] += getattr(summary, name)
        for kind, by_reason in reasons.items():
            by_reason.update(getattr(summary, kind))
    for kind, by_reason in reasons.items():
        counts[kind] = by_reason.total()
        counts.update({f"{kind}: {reason}": count for reason, count in sorted(by_reason.items())})
    return counts


def write_manifest(
    output: Output,
    writer: IndexedWriter,
    tokenizer: Tokenizer,
    sources: list[dict[str, Any]],
    settings: dict[str, Any],
    counts: dict[str, int],
) -> None:
    """Publish the manifest of one output: from then on the corpus is complete."""
    Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype=writer.dtype.name,
        documents=writer.num_documents,
        tokens=writer.num_tokens,
        checksums=writer.checksums,
        sources=sources,
        settings={**settings, "split": output.split},
        counts=counts,
    ).write(output.prefix)
