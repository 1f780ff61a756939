"""Turn text into a corpus of token ids: Megatron .bin/.idx with a manifest beside them.

Reads text, JSON lines (plain, gzip, bzip2, xz, zstd) and Parquet files, folders and glob patterns of
them, standard input, or a Hugging Face dataset. Each document is followed by the end-of-document token.
The output depends on the input and the settings only, not on the number of workers. A run that was
killed goes on where it stopped when the same command is started again; a run that is complete is
not made twice. Under mpirun, the ranks are the workers; with --shard I/N, each of N independent jobs
makes one part for `smet corpus merge`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence

import numpy as np

from pretrain.command import told
from pretrain.data.indexed import token_dtype
from pretrain.data.tokenizers import load_tokenizer
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError
from pretrain.numbers import byte_size, finite
from pretrain.paths import path_text, prefix_text
from pretrain.screen import on_screen

from .cores import cores
from .corpus.assemble import EmptySplitError, Output, assemble, outputs_for
from .corpus.chunks import part_chunks
from .corpus.cli import Summary, make_parser, run_tool
from .corpus.dedup import find_duplicates
from .corpus.extract import Settings, reading_options
from .corpus.filters import add_filter_arguments, filters_from
from .corpus.inputs import Inputs, add_source_arguments, find_inputs
from .corpus.parts import Part
from .corpus.pool import Pool, mpi_ranks, open_pool
from .corpus.probe import check_columns
from .corpus.record import describe_sources, total, write_manifest
from .corpus.rejects import nothing_left, rejects_path, write_rejects
from .corpus.state import WorkFolder, already_made, check_free, clear_done
from .corpus.tokenize import Finished, make_parts
from .corpus.units import plan_units, shard_units
from .corpus.work import Job


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("preprocess", __doc__)
    parser.add_argument(
        "--tokenizer", type=path_text, required=True, help="SentencePiece .model or Hugging Face tokenizer.json"
    )
    parser.add_argument("--eos-token", metavar="TOKEN", help="end-of-document token (default: the tokenizer's own)")
    parser.add_argument(
        "--output", type=prefix_text, required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx and .manifest.json"
    )
    parser.add_argument(
        "--validation-fraction", type=finite, default=0.0, metavar="F",
        help="keep this fraction of the documents apart, by their hash: writes PREFIX_train and PREFIX_validation",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all processors)")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="make the I-th (from 0) of N parts: writes PREFIX-I-of-N"
    )
    parser.add_argument(
        "--on-error", choices=("reject", "stop"), default="reject",
        help="a bad record goes to PREFIX.rejects.jsonl (default), or stops the run",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output or unfinished run")
    add_source_arguments(parser)
    parser.add_argument_group("limits").add_argument(
        "--max-document-bytes", type=byte_size, default=16 << 20, metavar="SIZE", help="reject longer ones (16M)"
    )
    add_filter_arguments(parser)
    return parser


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shard, expected I/N with 0 <= I < N, such as 0/8")
    return int(match[1]), int(match[2])


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings that shape the output.

    Raises:
        DataError: one of them is out of range.
    """
    if args.workers is not None and args.workers < 1:
        raise DataError(f"--workers is {args.workers}, expected 1 or more")
    if args.workers is not None and mpi_ranks() > 1:
        raise DataError("--workers has no effect under mpirun, whose ranks are the workers; leave it out")
    if not 0.0 <= args.validation_fraction < 1.0:
        raise DataError(f"--validation-fraction is {args.validation_fraction}, expected a fraction in [0, 1)")
    if args.shard and (args.validation_fraction or args.deduplicate):
        raise DataError(
            "--shard sees one part of the documents only; give --validation-fraction and --deduplicate to "
            f"{told('corpus', 'merge')} instead"
        )
    return Settings(
        tokenizer=args.tokenizer,
        eos_token=args.eos_token,
        **reading_options(args),
        filters=filters_from(args),
    )


def preprocess(args: argparse.Namespace, pool: Pool) -> Summary:
    """Do what the command line says; returns the summary."""
    started = time.monotonic()
    settings = settings_from(args)
    tokenizer = load_tokenizer(args.tokenizer, args.eos_token)
    inputs = find_inputs(args)
    sources = inputs.sources
    prefix = args.output if not args.shard else f"{args.output}-{args.shard[0]:05d}-of-{args.shard[1]:05d}"
    outputs = outputs_for(prefix, args.validation_fraction)
    described = {
        **settings.described(),
        "validation_fraction": args.validation_fraction,
        "deduplicate": args.deduplicate,
        "shard": list(args.shard) if args.shard else None,
        # Not where nothing has changed: corpora that were made before then stay what they are.
        **({"text_rule": tokenizer.text_rule} if tokenizer.text_rule else {}),
    }
    listed = describe_sources(sources)
    prefixes = [output.prefix for output in outputs]
    clear_done(prefix)
    if not args.overwrite and already_made(prefixes, tokenizer.sha256, sources, listed, described):
        return {"outputs": prefixes, "already_made": True}
    check_free(prefix, prefixes, args.overwrite)
    check_columns(sources, settings)
    print(inputs, file=sys.stderr)

    run = {
        "settings": described,
        "tokenizer": tokenizer.sha256,
        "inputs": [[source.path, source.size, source.modified, source.dataset, source.shard] for source in sources],
    }
    with WorkFolder(prefix, run, restart=args.overwrite) as work:
        job = Job(settings=settings, folder=work.path, stop_on_error=args.on_error == "stop")
        units = list(plan_units(sources, settings.whole_files))
        if args.shard:
            units = shard_units(units, *args.shard)
        make_parts(job, units, pool, Finished(work.summaries()))
        counts = total(work.summaries())
        write_rejects(work.parts(), rejects_path(prefix))
        if not counts["documents"] and not args.shard:
            work.finish()  # nothing in it is worth keeping
            raise DataError(nothing_left(counts, rejects_path(prefix)))
        try:
            writers = _assemble(work, outputs, token_dtype(tokenizer.vocab_size), counts, args)
        except EmptySplitError:  # few documents, and another fraction is another run
            work.finish()
            raise
        for output, writer in zip(outputs, writers, strict=True):
            write_manifest(output, writer, tokenizer, listed, described, counts)
        work.finish()
    return _summarise(writers, inputs, counts, prefix, time.monotonic() - started)


def _assemble(
    work: WorkFolder, outputs: Sequence[Output], dtype: np.dtype, counts: dict[str, int], args: argparse.Namespace
) -> list[IndexedWriter]:
    duplicate = None
    if args.deduplicate:
        digests = (Part(path).digests() for path in work.parts())
        duplicate = find_duplicates(digests, counts["documents"], work.path)
        counts["duplicates"] = int(np.count_nonzero(duplicate))
    chunks = part_chunks(work.parts(), digests=len(outputs) > 1)
    return assemble(chunks, outputs, dtype, duplicate, allow_empty=args.shard is not None)


def _summarise(
    writers: Sequence[IndexedWriter], inputs: Inputs, counts: dict[str, int], prefix: str, seconds: float
) -> Summary:
    tokens = sum(writer.num_tokens for writer in writers)
    return {
        "outputs": [{"prefix": w.prefix, "documents": w.num_documents, "tokens": w.num_tokens} for w in writers],
        "already_made": False,
        **inputs.summary(),
        **counts,
        "rejects": str(rejects_path(prefix)) if counts["rejected"] else None,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "megabytes_per_second": counts["text_bytes"] / seconds / 1e6,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Under ``mpirun`` every rank comes here; all but the first serve as workers."""
    parser = build_parser()
    args = parser.parse_args(argv)
    with open_pool(max(args.workers or cores(), 1)) as pool:
        return 0 if pool is None else run_tool(args, lambda args: preprocess(args, pool))


if __name__ == "__main__":
    sys.exit(on_screen(main))
