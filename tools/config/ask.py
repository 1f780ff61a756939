"""What ``smet config new`` has to know: from options, or asked on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from pretrain.errors import ConfigError, LaunchError
from pretrain.numbers import byte_size, finite
from pretrain.paths import path_argument, prefix_text
from pretrain.plan.devices import DEVICES, device_of

from ..planner.machines import CPU, find_name, machine_of
from ..planner.which import TOKENS_PER_WEIGHT, model_sizes
from .new import Wanted, count, presets

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``new``."""
    parser.add_argument("file", type=path_argument, metavar="FILE", help="run file to make, such as run.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings, e.g. sparsity.density=0.1")
    parser.add_argument("--model", metavar="SIZE", help="a size of configs/models, such as 60m")
    parser.add_argument("--data", type=prefix_text, metavar="PREFIX", help="corpus: PREFIX.bin and PREFIX.idx")
    parser.add_argument("--validation", type=prefix_text, metavar="PREFIX", help="corpus to evaluate on")
    parser.add_argument("--tokenizer", type=path_argument, metavar="PATH", help="checked against the corpus")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs, or processes on a CPU")
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(DEVICES)}; or cpu")
    parser.add_argument("--memory", type=byte_size, help="memory of one GPU; default that of --gpu")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--tokens", type=_count, metavar="T", help=f"such as 10B; default {TOKENS_PER_WEIGHT} per weight"
    )
    length.add_argument("--hours", type=finite, metavar="H", help="as many tokens as this takes by prediction")
    parser.add_argument("--tiles", action="store_true", help="sparse in the tiles of configs/tiles, which are faster")
    parser.add_argument(
        "--preset", default=Wanted.preset, metavar="NAME",
        help=f"{' or '.join(presets())}: where optimizer, initial weights and rates come from (default: %(default)s)",
    )  # fmt: skip


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What the command line says; on a terminal, what it leaves out is asked for.

    Raises:
        LaunchError: something is left out, and there is nobody to ask.
    """
    if options.file.exists():
        raise ConfigError(f"{options.file} is there already, expected the name of a new file")
    missing = [f"--{name}" for name in ("model", "data", "gpus", "gpu") if getattr(options, name) is None]
    if missing and not sys.stdin.isatty():
        raise LaunchError(f"{', '.join(missing)} missing, and no terminal to ask on; give all of them")
    if options.hours is not None and options.hours <= 0:
        raise LaunchError(f"--hours is {options.hours:g}, expected more than nothing")
    asks = bool(missing)
    size = options.model or ask(f"Model size ({', '.join(model_sizes())})", _size)
    data = options.data or ask("Corpus (prefix of its .bin and .idx)", prefix_text)
    gpu = options.gpu or ask(f"Kind of GPU ({', '.join(DEVICES)}, or {CPU})", find_name, _here())
    gpus = ask("How many of them", _positive, "1") if options.gpus is None else _positive(str(options.gpus))
    tokens, hours = options.tokens, options.hours
    if asks and tokens is None and hours is None:
        tokens, hours = ask("How long: tokens (10B), hours (12h), or empty: 20 tokens per weight", _length, "")
    machine = machine_of(gpu, {}, gpus)
    return Wanted(
        size=size, data=data, validation=options.validation, tokenizer=options.tokenizer and str(options.tokenizer),
        gpus=gpus, named=machine, memory=options.memory or machine.memory, tokens=tokens, hours=hours,
        tiles=options.tiles, preset=options.preset, overrides=options.overrides,
    )  # fmt: skip


def ask(question: str, understood: Callable[[str], T], default: str | None = None) -> T:
    """Ask until the answer is understood. Questions go to stderr, so that output stays what it is.

    Raises:
        LaunchError: the input ended.
    """
    shown = f"{question} [{default}]: " if default else f"{question}: "
    while True:
        print(shown, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise LaunchError("the input ended before every question had an answer; give the options instead")
        try:
            return understood(line.strip() or default or "")
        except (ConfigError, LaunchError, argparse.ArgumentTypeError) as error:
            print(f"  {error}", file=sys.stderr)


def _size(answer: str) -> str:
    if answer not in (sizes := model_sizes()):
        raise ConfigError(f"expected one of {', '.join(sizes)}")
    return answer


def _positive(answer: str) -> int:
    if not answer.isdecimal() or int(answer) < 1:
        raise LaunchError(f"'{answer}' GPUs, expected a number of 1 or more")
    return int(answer)


def _length(answer: str) -> tuple[float | None, float | None]:
    """(tokens, hours), one of both or none."""
    if answer.lower().endswith("h"):
        return None, finite(answer[:-1])
    return (count(answer), None) if answer else (None, None)


def _count(answer: str) -> float:
    try:
        return count(answer)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _here() -> str:
    """The kind of GPU in this machine, or the CPU."""
    import torch

    found = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return found[0] if found else CPU
