"""Train a SentencePiece tokenizer on a bounded sample of text.

Writes PREFIX.model, PREFIX.vocab and PREFIX.json (a card: sha256, settings, and bytes of text per
token on documents it was not trained on). The same input, settings and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.writer import publish
from pretrain.errors import DataError
from pretrain.paths import path_text
from pretrain.screen import on_screen
from tools.corpus.cli import Summary, byte_size, make_parser, run_tool
from tools.corpus.extract import RejectedError, Settings, text_of, unescape
from tools.corpus.probe import check_columns
from tools.corpus.progress import progress
from tools.corpus.sample import Sample, sentences
from tools.corpus.sources import add_source_arguments, find_sources, plan_units
from tools.corpus.tokenizers import SentencePieceTokenizer
from tools.corpus.work import unit_records

HELD_OUT = 20
"""One document in this many measures the tokenizer instead of training it."""
THREADS = 16
"""Constant: unigram training sums in an order that depends on the number of threads."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("train_tokenizer", __doc__)
    add_source_arguments(parser)
    parser.add_argument(
        "--output", type=path_text, required=True, metavar="PREFIX", help="writes PREFIX.model, .vocab and .json"
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, special ones and 256 bytes included")
    parser.add_argument(
        "--pad-to-multiple", type=int, default=128, metavar="N",
        help="round the vocabulary size up to a multiple (default 128: divides over tensor-parallel ranks)",
    )  # fmt: skip
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="default: bpe")
    parser.add_argument("--special-tokens", nargs="*", default=[], metavar="TOKEN", help="your own, never split")
    parser.add_argument("--sample-bytes", type=byte_size, default=200_000_000, metavar="SIZE", help="default: 200M")
    parser.add_argument(
        "--read-bytes", type=byte_size, default=10_000_000_000, metavar="SIZE",
        help="of a larger input, look for the sample in this much text, from places all over it (default 10G)",
    )  # fmt: skip
    parser.add_argument("--character-coverage", type=float, default=0.9995, help="the rest is spelled in bytes")
    parser.add_argument("--max-document-bytes", type=byte_size, default=16 << 20, metavar="SIZE", help="default: 16M")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser


def train_tokenizer(args: argparse.Namespace) -> Summary:
    """Do what the command line says; returns the card."""
    paths = {suffix: Path(f"{args.output}.{suffix}") for suffix in ("model", "vocab", "json")}
    _check(args, paths)
    training, held_out = draw_samples(args)
    vocab_size = -(-args.vocab_size // args.pad_to_multiple) * args.pad_to_multiple
    model = train(args, vocab_size, training.documents())
    paths["model"].parent.mkdir(parents=True, exist_ok=True)
    publish(paths["model"], [model])
    tokenizer = SentencePieceTokenizer(paths["model"], None)
    publish(paths["vocab"], [_vocabulary(model)])
    card = {
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "model_type": args.model_type,
        "special_tokens": args.special_tokens,
        "character_coverage": args.character_coverage,
        "seed": args.seed,
        "documents_seen": training.seen + held_out.seen,
        "bytes_trained_on": training.size,
        "bytes_held_out": held_out.size,
        "bytes_per_token": _bytes_per_token(tokenizer, held_out),
    }
    publish(paths["json"], [(json.dumps(card, indent=1) + "\n").encode()])
    return {"output": str(paths["model"]), **card}


def _check(args: argparse.Namespace, paths: dict[str, Path]) -> None:
    for name in ("vocab_size", "pad_to_multiple"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected 1 or more")
    if not args.overwrite and (taken := [path for path in paths.values() if path.exists()]):
        raise DataError(f"output {taken[0]} exists; choose another --output, or replace it with --overwrite")


def draw_samples(args: argparse.Namespace) -> tuple[Sample, Sample]:
    """Read the sources once: the sample to train on, and one to measure with."""
    training = Sample(args.sample_bytes, args.seed)
    held_out = Sample(max(args.sample_bytes // HELD_OUT, 1), args.seed)
    for number, text in enumerate(_texts(args)):
        (held_out if number % HELD_OUT == HELD_OUT - 1 else training).add(text)
    if not training.size:
        raise DataError("the input gives no document with text in it; look at --input and --text-column")
    return training, held_out


def _texts(args: argparse.Namespace) -> Iterator[str]:
    """Documents, unit by unit in a random order, until enough is read."""
    settings = Settings(
        tokenizer="",
        text_column=args.text_column,
        template=unescape(args.template),
        text_mode=args.text_mode,
        max_document_bytes=args.max_document_bytes,
    )
    sources = find_sources(args)
    check_columns(sources, settings)
    units = list(plan_units(sources, settings.whole_files))
    random.Random(args.seed).shuffle(units)
    read = 0
    for unit in progress("read", iterable=units, unit="unit"):
        for raw in unit_records(unit, settings):
            try:
                text = text_of(raw, settings)
            except RejectedError:
                continue
            if not text or text.isspace():
                continue
            yield text
            read += len(text)
            if read >= args.read_bytes:
                return


def train(args: argparse.Namespace, vocab_size: int, documents: Sequence[str]) -> bytes:
    """The bytes of a SentencePiece model with LLaMA's conventions (identity normalization, byte fallback)."""
    import sentencepiece

    model = io.BytesIO()
    options: dict[str, Any] = {
        "sentence_iterator": sentences(documents),
        "model_writer": model,
        "model_type": args.model_type,
        "vocab_size": vocab_size,
        "character_coverage": args.character_coverage,
        "user_defined_symbols": list(args.special_tokens),
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "num_threads": THREADS,
        "minloglevel": 2,
    }
    try:
        sentencepiece.SentencePieceTrainer.train(**options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"no vocabulary of {vocab_size} can be trained on {sum(map(len, documents))} characters: {reason}; "
            "change --vocab-size or give more text"
        ) from None
    return model.getvalue()


def _vocabulary(model: bytes) -> bytes:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = (f"{pieces.id_to_piece(i)}\t{pieces.get_score(i):g}\n" for i in range(pieces.get_piece_size()))
    return "".join(lines).encode()


def _bytes_per_token(tokenizer: SentencePieceTokenizer, sample: Sample) -> float | None:
    """None where no document was held out."""
    tokens = sum(len(tokenizer.encode(text)) for text in sample.documents())
    size = sum(len(text.encode()) for text in sample.documents())
    return round(size / tokens, 4) if tokens else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_tool(build_parser().parse_args(argv), train_tokenizer)


if __name__ == "__main__":
    sys.exit(on_screen(main))
