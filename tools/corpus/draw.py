"""Text for a tokenizer: a sample to train on and one to measure with, and the count of all that was left out."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pretrain.errors import DataError

from .extract import RejectedError, Settings, reading_options, text_of
from .inputs import Inputs, find_inputs
from .probe import check_columns
from .progress import progress
from .rejects import nothing_left
from .sample import Sample
from .units import plan_units
from .work import rejected, unit_records

HELD_OUT = 20
"""One document in this many measures the tokenizer instead of training it."""


@dataclass
class Drawn:
    """What was read, and what was kept of it."""

    inputs: Inputs
    training: Sample
    held_out: Sample
    counts: Counter[str] = field(default_factory=Counter)
    """Records read, empty ones, and rejected ones in all and by reason."""
    complete: bool = False
    """Whether the input was read to its end, and not to ``--read-bytes``."""


def draw_samples(args: argparse.Namespace, rejects: Path) -> Drawn:
    """Read the sources once; what could not be used is counted, and named in the file ``rejects``.

    Raises:
        DataError: there is no text, or an option has no effect.
    """
    settings = Settings(tokenizer="", **reading_options(args))
    inputs = find_inputs(args)
    check_columns(inputs.sources, settings)
    print(inputs, file=sys.stderr)
    held_out = Sample(max(args.sample_bytes // HELD_OUT, 1), args.seed)
    drawn = Drawn(inputs, Sample(args.sample_bytes, args.seed), held_out)
    drawn.counts.update({"records": 0, "empty": 0, "rejected": 0})
    rejects.unlink(missing_ok=True)
    temporary = rejects.with_name(f"{rejects.name}.writing")
    with temporary.open("w") as file:
        for number, text in enumerate(_texts(drawn, settings, args, file)):
            (drawn.held_out if number % HELD_OUT == HELD_OUT - 1 else drawn.training).add(text)
    if drawn.counts["rejected"]:
        os.replace(temporary, rejects)
        print(f"left out {drawn.counts['rejected']:,} records; they are in {rejects}", file=sys.stderr)
    else:
        temporary.unlink()
    if not drawn.training.size:
        raise DataError(nothing_left(drawn.counts, rejects))
    return drawn


def _texts(drawn: Drawn, settings: Settings, args: argparse.Namespace, rejects: IO[str]) -> Iterator[str]:
    """Documents, unit by unit in a random order, until enough is read."""
    units = list(plan_units(drawn.inputs.sources, settings.whole_files))
    random.Random(args.seed).shuffle(units)
    read = 0
    for unit in progress("read", iterable=units, unit="unit"):
        for raw in unit_records(unit, settings):
            if read >= args.read_bytes:
                return
            drawn.counts["records"] += 1
            try:
                text = text_of(raw, settings)
            except RejectedError as error:
                drawn.counts.update(["rejected", f"rejected: {error.problem.category}"])
                rejects.write(json.dumps(rejected(raw, error.problem)) + "\n")
                continue
            if not text or text.isspace():
                drawn.counts["empty"] += 1
                continue
            yield text
            read += len(text) if text.isascii() else len(text.encode())
    drawn.complete = True
