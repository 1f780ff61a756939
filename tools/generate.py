"""Text that a trained model writes: from a run, one of its checkpoints, or an exported model.

SOURCE is a run folder (then its newest checkpoint), a checkpoint of any layout, or a folder of exported files. One
process; sparse layers stay sparse: on a CPU a token is multiplied with their active weights alone, elsewhere their
weights are made dense one layer at a time, inside the product. Greedy unless --temperature is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretrain.data.tokenizers import Tokenizer
from pretrain.errors import DataError
from pretrain.exit_codes import DONE
from pretrain.generate import Reading, Transcript, are_sound, choose, continuation
from pretrain.models.cache import takes_cache
from pretrain.numbers import finite
from pretrain.outside import is_no_text, printable
from pretrain.paths import path_argument, path_text
from pretrain.precision import DTYPES
from pretrain.screen import on_screen, refuse
from smet import compute
from smet.errors import UserError
from smet.seeds import generator

from .checkpoints.cli import add_family, byte_count, make_parser
from .inference.model import Loaded, load
from .inference.tokenizer import find_tokenizer

FEW = "smet.compute.few:Few"
"""The backend that multiplies few tokens, where it can."""
BYTES_OF_A_THREAD = 8 << 20
"""Weights that are worth a thread."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("generate", __doc__)
    parser.add_argument("source", type=path_argument, metavar="SOURCE", help="run, checkpoint or export")
    parser.add_argument("prompts", nargs="+", metavar="TEXT", help="what to continue; '' = a new document")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="per prompt (default: 64)")
    parser.add_argument("--temperature", type=finite, default=0.0, help="0 = the likeliest token (default: 0)")
    parser.add_argument(
        "--top-p", type=finite, default=1.0, metavar="P", help="draw among the likeliest that make up P (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--no-stream", action="store_true", help="print each text when it is complete")
    parser.add_argument("--no-cache", action="store_true", help="compute the whole text again for every token")
    parser.add_argument("--keep-dense", action="store_true", help="keep the dense weights of sparse layers in memory")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="default: as it was trained or exported")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokenizer", type=path_text, metavar="FILE", help="default: that of the run or the export")
    parser.add_argument("--eos-token", metavar="TOKEN", help="end of document; default: that of the run's corpus")
    add_family(parser)
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        DataError: names the option.
    """
    if options.max_new_tokens < 1:
        raise DataError(f"--max-new-tokens is {options.max_new_tokens}, expected 1 or more")
    if options.temperature < 0:
        raise DataError(f"--temperature is {options.temperature:g}, expected 0 or more")
    if not 0 < options.top_p <= 1:
        raise DataError(f"--top-p is {options.top_p:g}, expected more than 0 and at most 1")


def prompt_tokens(text: str, tokenizer: Tokenizer, room: int, number: int) -> list[int]:
    """Token ids of a prompt; an empty one is the end of the document before.

    Raises:
        DataError: it is no text, or leaves no room for a token in the model's context.
    """
    if is_no_text(text):
        raise DataError(f"prompt {number} ({text[:40]!r}) holds bytes that are no UTF-8 text; give it as UTF-8")
    tokens = [int(token) for token in tokenizer.encode(text)] or [tokenizer.eos_id]
    if len(tokens) >= room:
        raise DataError(
            f"prompt {number} has {len(tokens):,} tokens, expected fewer than the {room:,} of the model's context; "
            "shorten it"
        )
    return tokens


def write(loaded: Loaded, tokenizer: Tokenizer, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Continue every prompt, one after the other; what comes is printed at once unless told otherwise.

    Raises:
        DataError: see ``prompt_tokens``, before anything is written; or the model has diverged.
    """
    prompts = [prompt_tokens(text, tokenizer, loaded.longest, n) for n, text in enumerate(options.prompts, 1)]
    return [_continue(loaded, tokenizer, n, tokens, options) for n, tokens in enumerate(prompts)]


def _continue(
    loaded: Loaded, tokenizer: Tokenizer, number: int, prompt: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    show = _silent if options.json else partial(print, end="", flush=True)
    chance = generator(options.seed, "generate", number)
    pick = partial(_next, tokenizer=tokenizer, options=options, chance=chance)
    room = min(loaded.longest, len(prompt) + options.max_new_tokens)
    reading = Reading(loaded.model, loaded.layers, room, cached=not options.no_cache)
    transcript, begin, new = Transcript(tokenizer.decode, prompt), time.perf_counter(), 0
    show(printable(options.prompts[number]))
    for token in continuation(reading, prompt, options.max_new_tokens, pick, tokenizer.eos_id):
        news, new = transcript.add(token), new + 1
        show("" if options.no_stream else printable(news))
    show(printable(transcript.text if options.no_stream else transcript.rest()) + "\n")
    full = "context" if room == loaded.longest else "length"
    return {
        "prompt": options.prompts[number],
        "text": transcript.text,
        "prompt_tokens": len(prompt),
        "tokens": new,
        "ended": full if len(prompt) + new == room else "end of document",
        "seconds": time.perf_counter() - begin,
    }


def _next(logits: Tensor, tokenizer: Tokenizer, options: argparse.Namespace, chance: torch.Generator) -> int:
    if not are_sound(logits[: tokenizer.vocab_size]):
        raise DataError(
            "the model's logits are NaN or infinite, expected finite ones: it had diverged, or its precision is too "
            "small for it; take an earlier checkpoint, or --precision fp32"
        )
    return choose(logits, tokenizer.vocab_size, options.temperature, options.top_p, chance)


def threads_for(weights: int, most: int) -> int:
    """Threads that multiply a token with so many bytes of weights. Those of a small model are read before a second
    thread has begun; where other programs compute too, most of the time would be waiting for that one.
    """
    return max(1, min(most, weights // BYTES_OF_A_THREAD))


def _silent(text: str) -> None:
    """Where the report says it all."""


def describe(loaded: Loaded, texts: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """What wrote the texts, how fast, and what its sparse layers took, in a line."""
    tokens, seconds = sum(text["tokens"] for text in texts), sum(text["seconds"] for text in texts)
    cached = not options.no_cache and takes_cache(loaded.model)
    why = "" if cached or options.no_cache else f" (model.family '{loaded.settings.family}' takes no cache)"
    how = "keys and values kept" if cached else f"the whole text computed for every token{why}"
    return (
        f"{loaded.place}: {tokens:,} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):,.1f} per second), "
        f"{loaded.precision} on {loaded.device.type}, {how}; {_of_sparse_layers(loaded)}"
    )


def _of_sparse_layers(loaded: Loaded) -> str:
    layers, dtype = loaded.sparse.values(), DTYPES[loaded.precision]
    if not layers:
        return "no sparse layers"
    held = sum(layer.values.nbytes + layer.packed_mask().nbytes for layer in layers)
    dense = [layer.in_features * layer.out_features * dtype.itemsize for layer in layers]
    by, kept = compute.describe(layers, 1, dtype), any(layer.keep_dense for layer in layers)
    if by == "few":
        more = "from which each token is multiplied"
    elif by != "dense":
        more = f"products by {by}"
    elif kept:
        more = f"and {byte_count(sum(dense))} of dense weights, which are kept"
    else:
        more = f"made dense one at a time, {byte_count(max(dense))} at most"
    return f"{len(layers)} sparse layers hold {byte_count(held)}, {more}"


def run(options: argparse.Namespace) -> int:
    """Do what the command line says.

    Raises:
        UserError: nothing to generate with, or options that mean nothing.
    """
    check(options)
    loaded = load(
        options.source, precision=options.precision, device=options.device, own_family=options.family,
        keep_dense=options.keep_dense or None,
    )  # fmt: skip
    for layer in loaded.sparse.values():
        if layer.compute == compute.AUTO and not layer.keep_dense:
            layer.compute = FEW
    if loaded.device.type == "cpu":
        weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
        torch.set_num_threads(threads_for(weights, torch.get_num_threads()))
    tokenizer = find_tokenizer(loaded, options.tokenizer, options.eos_token)
    for remark in loaded.remarks:
        print(f"note: {printable(remark)}", file=sys.stderr, flush=True)
    texts = write(loaded, tokenizer, options)
    if options.json:
        step = None if loaded.checkpoint is None else loaded.checkpoint.step
        print(json.dumps({"model": str(loaded.place), "step": step, "texts": texts}))
    else:
        print(printable(describe(loaded, texts, options)), file=sys.stderr, flush=True)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    try:
        return run(build_parser().parse_args(argv))
    except UserError as error:
        return refuse(error)


if __name__ == "__main__":
    sys.exit(on_screen(main))
