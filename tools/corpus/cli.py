"""What every corpus tool's command line shares: errors in one line, and ``--json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from pretrain.command import program
from pretrain.errors import DataError
from pretrain.outside import printable
from pretrain.screen import refuse
from smet.errors import UserError

from ..packages import named

Summary = dict[str, Any]


def make_parser(name: str, doc: str | None, has_commands: bool = False) -> argparse.ArgumentParser:
    """A parser whose description is the module's docstring; with ``--json``, unless its commands have it."""
    parser = argparse.ArgumentParser(
        prog=program(named(f"tools.{name}")), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if not has_commands:
        add_json_argument(parser)
    return parser


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")


def run_tool(args: argparse.Namespace, work: Callable[[argparse.Namespace], Summary]) -> int:
    """Work and print the summary. Returns the exit code: 0, or 2 after one line about the user's mistake."""
    try:
        _require_words(args)
        summary = work(args)
    except UserError as error:
        return refuse(error)
    except OSError as error:
        # A full disk, a missing right, a lost mount: not for this program to mend, nor a bug in it.
        place = error.filename or getattr(args, "output", None)  # a write into an open file names none
        where = f" ({place})" if place else ""
        print(f"error: {error.strerror or error}{where}; mend that and start the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; start the same command again", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(summary))
    else:
        for key, value in summary.items():
            if value is None or value is False:
                continue  # what there is not, or what did not happen; for programs it is in --json
            print(printable(f"{key}: {_readable(value)}"))  # documents may be anybody's text
    return 0


def _require_words(args: argparse.Namespace) -> None:
    """Refuse an option whose text is empty, such as that of a shell variable that is not set: it would count as not
    given."""
    for name, value in vars(args).items():
        if "" in (value if isinstance(value, list) else [value]):
            raise DataError(f"--{name.replace('_', '-')} is empty; give it a value, or leave it out")


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(_readable(v) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
