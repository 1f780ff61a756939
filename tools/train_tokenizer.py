"""Train a SentencePiece tokenizer on a bounded sample of text.

Writes PREFIX.model, PREFIX.vocab and PREFIX.card.json (sha256, settings, what was read and left out, and
bytes of text per token on documents it was not trained on). What could not be read is named in
PREFIX.rejects.jsonl. The same input, settings and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.data.card import card_path, old_card
from pretrain.data.tokenizers import SentencePieceTokenizer
from pretrain.data.writer import publish
from pretrain.errors import DataError
from pretrain.numbers import byte_size, finite
from pretrain.paths import prefix_text
from pretrain.screen import on_screen

from .corpus.cli import Summary, make_parser, run_tool
from .corpus.draw import Drawn, draw_samples
from .corpus.inputs import add_source_arguments
from .corpus.rejects import rejects_path
from .corpus.sample import Sample, sentences
from .locks import claim

BUILT_IN = ("<unk>", "<s>", "</s>")
THREADS = 16
"""Constant: unigram training sums in an order that depends on the number of threads."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("train_tokenizer", __doc__)
    add_source_arguments(parser)
    parser.add_argument(
        "--output", type=prefix_text, required=True, metavar="PREFIX", help="writes PREFIX.model, .vocab, .card.json"
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, special ones and 256 bytes included")
    parser.add_argument(
        "--pad-to-multiple", type=int, default=128, metavar="N",
        help="round the vocabulary size up to a multiple (default 128: divides over tensor-parallel ranks)",
    )  # fmt: skip
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="default: bpe")
    parser.add_argument(
        "--special-tokens", nargs="*", default=[], metavar="TOKEN",
        help="ids of your own, for use by number: like </s>, a text that quotes one gives its letters",
    )  # fmt: skip
    parser.add_argument("--sample-bytes", type=byte_size, default=200_000_000, metavar="SIZE", help="default: 200M")
    parser.add_argument(
        "--read-bytes", type=byte_size, default=10_000_000_000, metavar="SIZE",
        help="of a larger input, look for the sample in this much text, from places all over it (default 10G)",
    )  # fmt: skip
    parser.add_argument("--character-coverage", type=finite, default=0.9995, help="the rest is spelled in bytes")
    parser.add_argument("--max-document-bytes", type=byte_size, default=16 << 20, metavar="SIZE", help="default: 16M")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser


def train_tokenizer(args: argparse.Namespace) -> Summary:
    """Do what the command line says; returns the card."""
    paths = {
        "model": Path(f"{args.output}.model"),
        "vocab": Path(f"{args.output}.vocab"),
        "card": card_path(args.output),
    }
    _check(args, list(paths.values()))
    # Before the text is read: a folder that cannot be written costs no hours.
    paths["model"].parent.mkdir(parents=True, exist_ok=True)
    with _alone(args.output):
        drawn = draw_samples(args, rejects_path(args.output))
        vocab_size = -(-args.vocab_size // args.pad_to_multiple) * args.pad_to_multiple
        model = train(args, vocab_size, drawn.training.documents())
        publish(paths["model"], [model])
        tokenizer = SentencePieceTokenizer(paths["model"], None)
        publish(paths["vocab"], [_vocabulary(model)])
        card = _card(args, tokenizer, drawn)
        publish(paths["card"], [(json.dumps(card, indent=1) + "\n").encode()])
        if old_card(Path(f"{args.output}.json")) is not None:
            Path(f"{args.output}.json").unlink()  # that of the tokenizer which this one replaces
    return {"output": str(paths["model"]), **card, **drawn.inputs.summary()}


@contextmanager
def _alone(output: str) -> Iterator[None]:
    lock = Path(output).with_name(f".{Path(output).name}.lock")
    with claim(lock, f"another process is training {output}; wait for it or choose another --output"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _card(args: argparse.Namespace, tokenizer: SentencePieceTokenizer, drawn: Drawn) -> dict[str, Any]:
    return {
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "model_type": args.model_type,
        "special_tokens": args.special_tokens,
        "character_coverage": args.character_coverage,
        "seed": args.seed,
        "documents_seen": drawn.training.seen + drawn.held_out.seen,
        "documents_trained_on": drawn.training.held,
        "bytes_trained_on": drawn.training.size,
        "bytes_held_out": drawn.held_out.size,
        "bytes_per_token": _bytes_per_token(tokenizer, drawn.held_out),
        "read_to_the_end": drawn.complete,
        **drawn.counts,
    }


def _check(args: argparse.Namespace, paths: list[Path]) -> None:
    for name in ("vocab_size", "pad_to_multiple"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected 1 or more")
    wrong = [token for token in args.special_tokens if not token or token in BUILT_IN or token.split() != [token]]
    if wrong or len(set(args.special_tokens)) < len(args.special_tokens):
        problem = f"{wrong[0]!r} among them" if wrong else "one of them twice"
        raise DataError(
            f"--special-tokens has {problem}, expected different names without white space and none of "
            f"{', '.join(BUILT_IN)}, which are there anyway"
        )
    if not args.overwrite and (taken := [path for path in paths if path.exists()]):
        raise DataError(f"output {taken[0]} exists; choose another --output, or replace it with --overwrite")


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
        # Not user-defined symbols, which are found in texts: a document that quotes one would be cut there.
        "control_symbols": list(args.special_tokens),
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
        step = args.pad_to_multiple
        asked = f" ({args.vocab_size} up to a multiple of {step})" if vocab_size != args.vocab_size else ""
        raise DataError(
            f"no vocabulary of {vocab_size}{asked} can be trained on {sum(map(len, documents))} characters: {reason}; "
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
