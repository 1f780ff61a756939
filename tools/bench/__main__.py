"""Command line: ``python -m tools.bench [options]``, ``python -m tools.bench gpu [options]`` for one GPU, ``python -m
tools.bench tiles`` for products on this CPU, and ``python -m tools.bench render RESULT.json PAGE.md``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pretrain.command import program, told
from pretrain.errors import DataError, UserError
from pretrain.files import write_atomically
from pretrain.paths import path_argument
from pretrain.records import misfit, read_document
from pretrain.screen import on_screen, refuse

from . import report
from .card import page


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 measured (whether or not thresholds are met), 2 bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gpu = arguments[:1] == ["gpu"] or any("cuda" in word for word in arguments)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    try:
        if arguments[:1] == ["gpu"]:
            from .card import command

            return command.main(arguments[1:])
        if arguments[:1] == ["tiles"]:
            from . import tiles

            return tiles.main(arguments[1:])
        return _render(arguments[1:]) if arguments[:1] == ["render"] else _measure(arguments)
    except UserError as error:
        return refuse(error)


def _measure(arguments: list[str]) -> int:
    from .options import add_arguments, options_of

    parser = argparse.ArgumentParser(
        prog=program(str(__package__)),
        description="SMET against dense AdamW under DeepSpeed, every figure with its threshold, in one run. "
        f"`{program(str(__package__), 'gpu')}` measures one GPU, `... tiles` products over tiles on this CPU; "
        "`... render RESULT.json PAGE.md` makes the page from the JSON of each.",
    )
    add_arguments(parser)
    given = parser.parse_args(arguments)
    options = options_of(given)
    from .everything import measure
    from .ranks import quiet

    quiet()
    result = measure(options)
    if given.json is not None:
        write_atomically(given.json, json.dumps(result, indent=1) + "\n")
    print(report.screen(result))
    return 0


def _render(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=program(str(__package__), "render"), description=report.page.__doc__)
    parser.add_argument("result", type=path_argument, help="what --json wrote")
    parser.add_argument("page", type=path_argument, help="Markdown file to write")
    parser.add_argument("--before", type=path_argument, help="an earlier result, to lay beside this one")
    parser.add_argument("--json", action="store_true", help="print {result, page, missed}")
    given = parser.parse_args(arguments)
    result = read(given.result)
    before = None if given.before is None else _earlier(given.before, result)
    if not given.page.absolute().parent.is_dir():
        raise DataError(f"{given.page.absolute().parent} does not exist; create the page's folder first")
    write_atomically(given.page, page_of(result, before))
    kind = result.get("kind")
    missed = page.missed(result) if kind == "gpu" else [] if kind == "tiles" else result["missed"]
    verdict = report.verdict(result) if kind is None else f"missed: {'; '.join(missed) or 'none'}"
    said = {"result": str(given.result), "page": str(given.page), "missed": missed}
    print(json.dumps(said) if given.json else f"{given.page} written from {given.result}; {verdict}")
    return 0


def _earlier(path: Path, result: report.Result) -> report.Result:
    """The result of ``path``, to be laid beside ``result``.

    Raises:
        DataError: one of the two is no whole benchmark, or they are of other settings.
    """
    before = read(path)
    if "kind" in before or "kind" in result:
        raise DataError("--before lays two results of the whole benchmark beside each other, not those of gpu or tiles")
    for name in ("model", "density", "ranks", "zero_stage", "micro_batch", "device", "quick"):
        if (then := before["options"][name]) != (now := result["options"][name]):
            raise DataError(f"{path} was measured with {name} {then}, the result with {now}; measure both alike")
    return before


def page_of(result: report.Result, before: report.Result | None = None) -> str:
    """The page of a result of each command; ``before``: as of ``report.page``."""
    if result.get("kind") == "tiles":
        from . import tiles_page

        return tiles_page.page(result)
    return page.page(result) if result.get("kind") == "gpu" else report.page(result, before)


def read(path: Path) -> report.Result:
    """A result that ``--json`` wrote.

    Raises:
        DataError: it is missing, or something else.
    """
    remedy = f"make it with {told('bench', '--json', str(path))}"
    result: report.Result = read_document(path, remedy)
    try:
        page_of(result)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path} is no result of the benchmark ({misfit(error)}); {remedy}") from None
    return result


if __name__ == "__main__":
    sys.exit(on_screen(main))
