"""Look after corpora: verify, inspect, merge, split, and measure how fast they are made.

verify   check structure, offsets, checksums, token ids and end-of-document tokens
inspect  counts and histograms; or one document or training sample as text
merge    several corpora (such as the shards of one run) into one
split    one corpus into PREFIX_train and PREFIX_validation, by document hash
bench    throughput of preprocessing against a bare tokenizer loop
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pretrain.errors import DataError
from pretrain.numbers import count, finite
from pretrain.paths import path_text, prefix_text
from pretrain.screen import on_screen

from .cores import cores
from .corpus import inspect
from .corpus.cli import Summary, add_json_argument, make_parser, run_tool
from .corpus.merge import merge
from .corpus.verify import verify


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("dataset", __doc__, has_commands=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_verify(commands)
    _add_inspect(commands)
    _add_merge(commands)
    _add_split(commands)
    _add_bench(commands)
    return parser


def _command(commands: Any, name: str, work: Any, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    add_json_argument(parser)
    parser.set_defaults(work=work)
    return parser


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", _verify, "check everything about corpora; exit code 2 if one is not sound")
    parser.add_argument("prefixes", nargs="+", type=prefix_text, metavar="PREFIX", help="path without .bin and .idx")
    parser.add_argument("--vocab-size", type=int, help="ids must be below it (default: the manifest's)")
    parser.add_argument("--eos-id", type=int, help="documents must end with it (default: the manifest's)")


def _verify(args: argparse.Namespace) -> Summary:
    found = {prefix: verify(prefix, args.vocab_size, args.eos_id) for prefix in args.prefixes}
    problems = [problem for some in found.values() for problem in some]
    if problems:
        raise DataError("; ".join(problems) + "; make the corpus again, or copy it again from where it is sound")
    return {"sound": list(found)}


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", _inspect, "show what a corpus holds")
    parser.add_argument("prefix", type=prefix_text, metavar="PREFIX", help="path without .bin and .idx")
    parser.add_argument("--tokenizer", type=path_text, help="shows text instead of token ids")
    parser.add_argument("--top", type=count, metavar="N", help="how many of the commonest tokens to show (default 10)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--document", type=int, metavar="N", help="show document N")
    what.add_argument("--sample", type=int, metavar="N", help="show sample N of training, with the two options below")
    parser.add_argument("--seq-length", type=int, metavar="N", help="the run's data.seq_length (default 1024)")
    parser.add_argument("--seed", type=int, metavar="N", help="the run's data.seed (default 0)")


def _inspect(args: argparse.Namespace) -> Summary:
    if args.sample is None and (args.seq_length, args.seed) != (None, None):
        raise DataError("--seq-length and --seed say how training draws a sample; give --sample N with them")
    if args.top is not None and (args.document, args.sample) != (None, None):
        raise DataError("--top belongs to the overview, which --document and --sample replace; leave it out")
    if args.document is not None:
        return inspect.document(args.prefix, args.document, args.tokenizer)
    if args.sample is not None:
        length = 1024 if args.seq_length is None else args.seq_length
        return inspect.sample(args.prefix, args.sample, length, args.seed or 0, args.tokenizer)
    return inspect.overview(args.prefix, args.tokenizer, 10 if args.top is None else args.top)


def _add_merge(commands: Any) -> None:
    parser = _command(commands, "merge", _merge, "write the documents of several corpora, in order, as one")
    parser.add_argument(
        "inputs", nargs="+", type=prefix_text, metavar="PREFIX", help="corpora made with one tokenizer, in order"
    )
    parser.add_argument(
        "--output", type=prefix_text, required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx and .manifest.json"
    )
    parser.add_argument(
        "--validation-fraction",
        type=finite,
        default=0.0,
        metavar="F",
        help="keep this fraction of the documents apart: writes PREFIX_train and PREFIX_validation",
    )
    parser.add_argument("--deduplicate", action="store_true", help="keep the first of several equal documents")
    parser.add_argument("--partial", action="store_true", help="go ahead although shards of a run are missing")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _merge(args: argparse.Namespace) -> Summary:
    if not 0.0 <= args.validation_fraction < 1.0:
        raise DataError(f"--validation-fraction is {args.validation_fraction}, expected a fraction in [0, 1)")
    return merge(
        args.inputs, args.output, args.validation_fraction, args.deduplicate, args.overwrite, partial=args.partial
    )


def _add_split(commands: Any) -> None:
    parser = _command(commands, "split", _split, "write one corpus as PREFIX_train and PREFIX_validation")
    parser.add_argument("input", type=prefix_text, metavar="PREFIX", help="path without .bin and .idx")
    parser.add_argument("--output", type=prefix_text, metavar="PREFIX", help="default: the input's prefix")
    parser.add_argument("--validation-fraction", type=finite, default=0.02, metavar="F", help="default: 0.02")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _split(args: argparse.Namespace) -> Summary:
    if not 0.0 < args.validation_fraction < 1.0:
        raise DataError(f"--validation-fraction is {args.validation_fraction}, expected a fraction in (0, 1)")
    return merge([args.input], args.output or args.input, args.validation_fraction, False, args.overwrite, partial=True)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", _bench, "throughput of tools.preprocess against bare tokenizer processes")
    parser.add_argument("input", type=path_text, metavar="FILE", help="JSON lines with a column 'text'")
    parser.add_argument(
        "--tokenizer", type=path_text, required=True, help="SentencePiece .model or Hugging Face tokenizer.json"
    )
    parser.add_argument(
        "--workers", type=int, default=cores(), help="processes on either side (default: all processors)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs of each (default 3)")


def _bench(args: argparse.Namespace) -> Summary:
    from .corpus.bench import bench

    return bench(args.input, args.tokenizer, args.workers, args.repeats)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    return run_tool(args, args.work)


if __name__ == "__main__":
    sys.exit(on_screen(main))
