"""Corpora into one, or one into training and validation, with manifests that say where they come from."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.indexed import IndexedDataset, token_dtype, tokens_path
from pretrain.data.manifest import Manifest, read_manifest
from pretrain.data.soundness import check_index
from pretrain.errors import DataError

from ..locks import claim
from .assemble import assemble, outputs_for
from .chunks import Chunk, corpus_chunks
from .dedup import find_duplicates
from .state import existing_files


def merge(
    prefixes: Sequence[str],
    output: str,
    validation_fraction: float,
    deduplicate: bool,
    overwrite: bool,
    partial: bool = False,
) -> dict[str, Any]:
    """Write the documents of all corpora, in order, to ``output``; see ``tools.preprocess`` for the options.

    Args:
        partial: whether shards of a run may be missing.

    Returns:
        prefix, documents and tokens of each corpus written, and how many duplicates were left out.

    Raises:
        DataError: an input is missing or damaged, inputs do not fit each other, or the output exists.
    """
    outputs = outputs_for(output, validation_fraction)
    taken = [str(path) for out in outputs for path in existing_files(out.prefix)]
    if taken and not overwrite:
        raise DataError(f"output {taken[0]} exists; choose another --output, or replace it with --overwrite")
    _check_apart(prefixes, [out.prefix for out in outputs])
    corpora = [IndexedDataset(prefix, allow_empty=True) for prefix in prefixes]
    manifests = [read_manifest(prefix) for prefix in prefixes]
    known = _check_alike(corpora, manifests)
    if not partial:
        _check_shards([manifest for manifest in manifests if manifest])
    for data, manifest in zip(corpora, manifests, strict=True):  # else the output's checksums would make damage sound
        check_index(data, manifest.checksums.get("idx") if manifest else None).require(wait=True)
    dtype = token_dtype(known.vocab_size) if known else corpora[0].dtype
    duplicates = 0
    with _folder(output) as folder:
        duplicate = None
        documents = sum(data.num_documents for data in corpora)
        if deduplicate and documents:
            digests = (chunk.digests for chunk in _chunks(corpora, digests=True))
            duplicate = find_duplicates(digests, documents, folder)
            duplicates = int(np.count_nonzero(duplicate))
        writers = assemble(_chunks(corpora, digests=len(outputs) > 1), outputs, dtype, duplicate)
    if known:
        base = _joined([manifest for manifest in manifests if manifest], prefixes)
        if deduplicate:
            base.counts["duplicates"] = base.counts.get("duplicates", 0) + duplicates
        settings = {**base.settings, "validation_fraction": validation_fraction, "deduplicate": deduplicate}
        for out, writer in zip(outputs, writers, strict=True):
            replace(
                base,
                documents=writer.num_documents,
                tokens=writer.num_tokens,
                checksums=writer.checksums,
                settings={**settings, "split": out.split},
            ).write(out.prefix)
    made = [{"prefix": w.prefix, "documents": w.num_documents, "tokens": w.num_tokens} for w in writers]
    return {"outputs": made, **({"duplicates": duplicates} if deduplicate else {})}


@contextmanager
def _folder(output: str) -> Iterator[Path]:
    """A folder for temporary files that one process at a time has, and that no preprocessing of the same name has."""
    folder = Path(f"{output}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder / "lock", f"another process is writing {output}; wait for it or choose another --output"):
        if (folder / "run.json").exists():
            raise DataError(f"{folder} holds an unfinished run of preprocessing; finish it or choose another --output")
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _check_apart(prefixes: Sequence[str], outputs: Sequence[str]) -> None:
    """No corpus twice, none of them the output: by their files, however they are spelled."""
    seen: dict[str, str] = {}
    for prefix in prefixes:
        real = os.path.realpath(tokens_path(prefix))
        if real in seen:
            raise DataError(
                f"corpus {prefix} is given twice (as {seen[real]}); to read more of it, weight it in a blend"
            )
        seen[real] = prefix
    if inside := [output for output in outputs if os.path.realpath(tokens_path(output)) in seen]:
        raise DataError(f"output {inside[0]} is one of the inputs; choose another --output")


def _check_shards(manifests: Sequence[Manifest]) -> None:
    """Shards of one run are all there; a merged corpus says that it holds the whole input."""
    runs: dict[str, set[int]] = {}
    for manifest in manifests:
        if shard := manifest.settings.get("shard"):
            run = json.dumps([{**manifest.settings, "shard": shard[1]}, manifest.sources], sort_keys=True)
            runs.setdefault(run, set()).add(shard[0])
    for run, found in runs.items():
        shards = json.loads(run)[0]["shard"]
        if missing := sorted(set(range(shards)) - found):
            named = ", ".join(map(str, missing[:10]))
            raise DataError(f"of {shards} shards {len(missing)} are missing: {named}; give all of them, or --partial")


def _chunks(corpora: Sequence[IndexedDataset], digests: bool) -> Iterator[Chunk]:
    for data in corpora:
        yield from corpus_chunks(data, digests)


def _check_alike(corpora: Sequence[IndexedDataset], manifests: Sequence[Manifest | None]) -> Manifest | None:
    """One of the manifests, if all inputs have one and agree; None if none has one."""
    for data in corpora[1:]:
        if data.dtype != corpora[0].dtype:
            raise DataError(
                f"corpora {corpora[0].prefix} and {data.prefix} have token dtypes {corpora[0].dtype} and {data.dtype}; "
                "preprocess them with one tokenizer"
            )
    known = [manifest for manifest in manifests if manifest]
    if len(known) not in (0, len(manifests)):
        without = corpora[list(manifests).index(None)].prefix
        raise DataError(f"corpus {without} has no manifest, others have; merge those with and those without apart")
    for manifest in known:
        if (manifest.tokenizer_sha256, manifest.eos_id) != (known[0].tokenizer_sha256, known[0].eos_id):
            raise DataError(
                f"the corpora were made with tokenizers {known[0].tokenizer_sha256[:12]} and "
                f"{manifest.tokenizer_sha256[:12]} (sha256); preprocess them with one tokenizer"
            )
    return known[0] if known else None


def _joined(manifests: Sequence[Manifest], prefixes: Sequence[str]) -> Manifest:
    """Counts add up; sources and settings stay as they are where all inputs agree, as shards of one run do."""
    counts: Counter[str] = Counter()
    for manifest in manifests:
        counts.update(manifest.counts)
    sources = manifests[0].sources
    if any(manifest.sources != sources for manifest in manifests):
        sources = [
            {"path": prefix, "documents": manifest.documents, "bin_sha256": manifest.checksums["bin"]}
            for prefix, manifest in zip(prefixes, manifests, strict=True)
        ]
    settings = {**manifests[0].settings, "shard": None}
    if any({**manifest.settings, "shard": None} != settings for manifest in manifests):
        settings = {"merged": [manifest.settings for manifest in manifests]}
    return replace(manifests[0], sources=sources, settings=settings, counts=dict(sorted(counts.items())))
