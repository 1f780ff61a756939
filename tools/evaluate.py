"""How well a trained model predicts text: loss, perplexity and bits per byte; or tasks of lm-evaluation-harness.

SOURCE is a run folder (then its newest checkpoint), a checkpoint of any layout, or a folder of exported files. One
process computes what the run's ranks compute together, batch by batch: on the run's own validation data, at its own
precision, the loss is the one in its metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from pretrain.config.schema import Source
from pretrain.data.corpus import Corpus, open_corpus
from pretrain.data.epochs import repeated
from pretrain.data_specs import blend_spec
from pretrain.errors import DataError
from pretrain.exit_codes import DONE
from pretrain.models import inventory_of
from pretrain.outside import printable
from pretrain.paths import path_argument, path_text, prefix_text
from pretrain.precision import DTYPES
from pretrain.screen import on_screen, refuse
from smet import compute
from smet.errors import UserError

from .checkpoints.cli import add_family, make_parser
from .inference import harness
from .inference.losses import loss_of, multiply_as_before
from .inference.model import Loaded, load
from .inference.places import blend
from .inference.text import bytes_of
from .inference.told import told_by_run

ALL = "all"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("source", type=path_argument, metavar="SOURCE", help="run, checkpoint or export")
    parser.add_argument(
        "--data", type=prefix_text, metavar="PREFIX", help="corpus (PREFIX.bin, .idx); default: the run's own"
    )
    parser.add_argument(
        "--split", choices=("train", "validation"), help="of the run's data (default: validation); or PREFIX_SPLIT"
    )
    parser.add_argument(
        "--samples", type=_samples, metavar="N", help="the first N of the run's order, or 'all' of one epoch; "
        "default: evaluation.samples of the run, else all",
    )  # fmt: skip
    parser.add_argument("--precision", choices=tuple(DTYPES), help="default: as it was trained or exported")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokenizer", type=path_text, metavar="FILE", help="for bits per byte; default: the run's")
    harness.add_arguments(parser)
    add_family(parser)
    return parser


def _samples(text: str) -> int:
    """A number of samples; 0 for ``all``."""
    if text == ALL:
        return 0
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is '{text}', expected a number of samples, 1 or more, or {ALL}")
    return int(text)


def data_of(loaded: Loaded, data: str | None, split: str | None) -> list[Source]:
    """The blend that is asked for.

    Raises:
        DataError: none is named, neither here nor by the run.
    """
    if data is not None:
        return [Source(path=f"{data}_{split}" if split else data)]
    if not (found := blend(loaded, split or "validation")):
        raise DataError(f"{loaded.place} names no {split or 'validation'} data; name a corpus with --data PREFIX")
    return found


def open_data(loaded: Loaded, sources: list[Source]) -> Corpus:
    """The corpus or blend of ``sources``, cut and ordered as in the run; without one, in whole contexts.

    Raises:
        DataError: it is missing, damaged, or of another vocabulary.
    """
    length, seed = (loaded.run.data.seq_length, loaded.run.data.seed) if loaded.run else (loaded.longest, 0)
    corpus = open_corpus(blend_spec(tuple(sources)), length, seed)
    rows = inventory_of(loaded.settings).shape.vocabulary
    if corpus.vocab_size is not None and corpus.vocab_size > rows:
        raise DataError(
            f"{sources[0].path} has a vocabulary of {corpus.vocab_size}, the model of {rows}: it was made with "
            "another tokenizer; preprocess the text with the run's"
        )
    corpus.limit_ids(rows)
    corpus.settle()
    return corpus


def measure(loaded: Loaded, corpus: Corpus, samples: int) -> dict[str, Any]:
    """The loss, as the run computes it where there is one, how long that took, and who multiplied."""
    run, begin = loaded.run, time.perf_counter()
    micro, ranks, stages = (run.train.micro_batch_size, run.ranks, run.stages) if run else (1, 1, 1)
    if run is not None:
        multiply_as_before(loaded.sparse, run.chosen, micro * corpus.seq_length, loaded.precision)
    loss = loss_of(loaded, corpus, samples, micro, ranks, single=stages > 1)
    by = compute.describe(loaded.sparse.values(), micro * corpus.seq_length, DTYPES[loaded.precision])
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "precision": loaded.precision,
        "device": loaded.device.type,
        "products": by if loaded.sparse else None,
        "seconds": time.perf_counter() - begin,
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """The loss, and what it is of.

    Raises:
        UserError: no model or no data, or they do not fit.
    """
    place = {"precision": options.precision, "device": options.device, "own_family": options.family}
    loaded = load(options.source, **place, documents=True, closed=True)
    sources = data_of(loaded, options.data, options.split)
    corpus = open_data(loaded, sources)
    own = loaded.run.evaluation.samples if loaded.run else 0
    samples = (own if options.samples is None else options.samples) or corpus.num_samples
    told = repeated(corpus, samples)
    often = [f"of {samples:,} samples {told}"] if told else []
    measured = measure(loaded, corpus, samples)
    tokens = samples * corpus.seq_length
    size, why = bytes_of(loaded, corpus, samples, [source.path for source in sources], options.tokenizer)
    same = options.data is None and options.split != "train" and samples == own
    return {
        "model": str(loaded.place),
        "step": None if loaded.checkpoint is None else loaded.checkpoint.step,
        "data": [vars(source) for source in sources],
        "samples": samples,
        "of_samples": corpus.num_samples,
        "tokens": tokens,
        **measured,
        "bytes": size,
        "bits_per_byte": measured["loss"] * tokens / math.log(2) / size if size else None,
        "run": told_by_run(loaded) if same else None,
        "notes": [*loaded.remarks, *often, *([] if size else [f"no bits per byte: {why}"])],
    }


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    per_byte = f", {report['bits_per_byte']:.4f} bits per byte" if report["bits_per_byte"] else ""
    of = f" of {report['of_samples']:,}" if report["samples"] != report["of_samples"] else ""
    data = ", ".join(source["path"] for source in report["data"])
    by = f", sparse products by {report['products']}" if report["products"] else ""
    lines = [
        f"{report['model']}: loss {report['loss']:.6f}, perplexity {report['perplexity']:.4f}{per_byte}",
        f"{data}: {report['samples']:,}{of} samples, {report['tokens']:,} tokens in {report['seconds']:.1f} s; "
        f"{report['precision']} on {report['device']}{by}",
    ]
    if (run := report["run"]) is not None:
        told = run["validation_loss"]
        how = "the same to the bit" if told == report["loss"] else f"{report['loss'] - told:+.2g} here"
        after = "; the topology was updated after that, and the checkpoint is of the update" * run["updated_after"]
        lines.append(f"the run's own at step {report['step']}: {told:.6f}, {how}{after}")
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = build_parser().parse_args(argv)
    try:
        if options.lm_eval is not None:
            return harness.run(options)
        report = evaluate(options)
    except UserError as error:
        return refuse(error)
    print(json.dumps(report) if options.json else printable(describe(report)), flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(on_screen(main))
