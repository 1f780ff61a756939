"""Turn text into a corpus of token ids: Megatron .bin/.idx with a manifest beside them.

Reads text, JSON lines (plain, gzip, zstd) and Parquet files, folders and glob patterns of them,
standard input, or a Hugging Face dataset. Each document is followed by the end-of-document token.
The output depends on the input and the settings only, not on the number of workers. A run that was
killed goes on where it stopped when the same command is started again; a run that is complete is
not made twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretrain.data.indexed import token_dtype
from pretrain.data.manifest import Manifest
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError
from tools.corpus.assemble import Output, assemble, outputs_for, write_rejects
from tools.corpus.cli import Summary, byte_size, make_parser, run_tool
from tools.corpus.extract import Settings
from tools.corpus.parts import PartSummary
from tools.corpus.pool import Task, default_workers, open_pool, run_tasks
from tools.corpus.sources import Source, Unit, add_source_arguments, find_sources, plan_units
from tools.corpus.state import WorkFolder, already_made, existing_files
from tools.corpus.tokenizers import Tokenizer, load_tokenizer
from tools.corpus.work import Job, encode_segment, encode_stream, encode_unit, segments, unit_records

LISTED_SOURCES = 64
"""A manifest names this many sources one by one; more are told by number, size and hash of the list."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("preprocess", __doc__)
    add_source_arguments(parser)
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model or Hugging Face tokenizer.json")
    parser.add_argument("--eos-token", metavar="TOKEN", help="end-of-document token (default: the tokenizer's own)")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx and .manifest.json")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.0, metavar="F",
        help="keep this fraction of the documents apart, by their hash: writes PREFIX_train and PREFIX_validation",
    )  # fmt: skip
    parser.add_argument("--max-document-bytes", type=byte_size, default=16 << 20, metavar="SIZE", help="default: 16M")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: all processors)")
    parser.add_argument("--on-error", choices=("reject", "stop"), default="reject", help="what a bad record does")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output or unfinished run")
    return parser


def preprocess(args: argparse.Namespace) -> Summary:
    """Do what the command line says; returns the summary."""
    started = time.monotonic()
    _check(args)
    tokenizer = load_tokenizer(args.tokenizer, args.eos_token)
    settings = Settings(
        tokenizer=args.tokenizer,
        eos_token=args.eos_token,
        text_column=args.text_column,
        text_mode=args.text_mode,
        max_document_bytes=args.max_document_bytes,
    )
    sources = find_sources(args)
    outputs = outputs_for(args.output, args.validation_fraction)
    described = {**settings.described(), "validation_fraction": args.validation_fraction}
    prefixes = [output.prefix for output in outputs]
    listed = describe_sources(sources)
    if not args.overwrite and already_made(prefixes, tokenizer.sha256, listed, described):
        return {"outputs": prefixes, "already_made": True}
    run = {
        "settings": described,
        "tokenizer": tokenizer.sha256,
        "inputs": [[s.path, s.size, s.modified, s.dataset, s.shard] for s in sources],
    }
    _check_free(args, prefixes)
    with WorkFolder(args.output, run, restart=args.overwrite) as work:
        job = Job(settings=settings, folder=work.path, stop_on_error=args.on_error == "stop")
        make_parts(job, sources, args.workers, work.summaries())
        counts = total(work.summaries())
        writers = assemble(work.parts(), outputs, token_dtype(tokenizer.vocab_size))
        write_rejects(work.parts(), Path(f"{args.output}.rejects.jsonl"))
        for output, writer in zip(outputs, writers, strict=True):
            write_manifest(output, writer, tokenizer, listed, described, counts)
        work.finish()
    return summarise(writers, counts, time.monotonic() - started)


def _check(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise DataError(f"--workers is {args.workers}, expected 1 or more")
    if not 0.0 <= args.validation_fraction < 1.0:
        raise DataError(f"--validation-fraction is {args.validation_fraction}, expected a fraction in [0, 1)")


def _check_free(args: argparse.Namespace, prefixes: Sequence[str]) -> None:
    """An output that exists is in the way, unless an unfinished run of ours was about to replace it."""
    if args.overwrite or Path(f"{args.output}.work", "run.json").exists():
        return
    if taken := [str(path) for prefix in prefixes for path in existing_files(prefix)]:
        raise DataError(
            f"output {taken[0]} exists and was made from other inputs or settings; choose another --output, or "
            "replace it with --overwrite"
        )


def make_parts(job: Job, sources: Sequence[Source], workers: int, finished: Sequence[PartSummary]) -> None:
    """Tokenize everything that is not in ``finished``, with progress on stderr."""
    units = list(plan_units(sources, job.settings.whole_files))
    sequential = sum(unit.sequential for unit in units)
    # Many streams: each worker reads one. Few: this process reads, so that all workers have text to encode.
    tasks = _tasks(job, units, finished, read_here=sequential < workers)
    expected = None if sequential else sum(unit.size for unit in units)
    with (
        open_pool(workers) as pool,
        tqdm(total=expected, unit="B", unit_scale=True, desc="tokenize", disable=None, file=sys.stderr) as bar,
    ):
        bar.update(sum(summary.read_bytes for summary in finished))
        tokens, started = 0, time.monotonic()
        for made in run_tasks(pool, tasks, under_way=2 * workers):
            for summary in made:
                tokens += summary.tokens
                bar.update(summary.read_bytes)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started) / 1e6:.2f} Mtokens/s")


def _tasks(job: Job, units: Sequence[Unit], finished: Sequence[PartSummary], read_here: bool) -> Iterator[Task]:
    done: dict[int, set[int]] = {}
    complete: dict[int, int] = {}
    for summary in finished:
        done.setdefault(summary.unit, set()).add(summary.segment)
        if summary.last:
            complete[summary.unit] = summary.segment + 1
    for unit in units:
        have = done.get(unit.number, set())
        if len(have) == complete.get(unit.number):
            continue
        if not unit.sequential:
            yield encode_unit, (job, unit)
        elif read_here:
            for number, records, last in segments(unit_records(unit, job.settings)):
                if number not in have:
                    yield encode_segment, (job, unit.number, number, records, last)
        else:
            yield encode_stream, (job, unit, frozenset(have))


def describe_sources(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """For the manifest: each source, or where there are many, their number, size and the hash of their list."""
    listed = [{"path": source.label, "bytes": source.size} for source in sources]
    if len(listed) <= LISTED_SOURCES:
        return listed
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    size = sum(source.size for source in sources)
    return [{"files": len(listed), "bytes": size, "first": listed[0], "last": listed[-1], "list_sha256": digest}]


def total(summaries: Sequence[PartSummary]) -> dict[str, int]:
    """Sums over all parts."""
    counts = {
        name: sum(getattr(s, name) for s in summaries) for name in ("records", "documents", "text_bytes", "empty")
    }
    rejected: Counter[str] = Counter()
    for summary in summaries:
        rejected.update(summary.rejected)
    return {**counts, "rejected": rejected.total(), **{f"rejected: {k}": n for k, n in sorted(rejected.items())}}


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
        settings={**settings, "split": output.name},
        counts=counts,
    ).write(output.prefix)


def summarise(writers: Sequence[IndexedWriter], counts: dict[str, int], seconds: float) -> Summary:
    """What the tool prints."""
    tokens = sum(writer.num_tokens for writer in writers)
    return {
        "outputs": [{"prefix": w.prefix, "documents": w.num_documents, "tokens": w.num_tokens} for w in writers],
        "already_made": False,
        **counts,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "megabytes_per_second": counts["text_bytes"] / seconds / 1e6,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_tool(build_parser(), preprocess, argv)


if __name__ == "__main__":
    sys.exit(main())
