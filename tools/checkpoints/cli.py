"""What the checkpoint tools' command lines share: errors in one line with exit code 2, and ``--json``."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pretrain.command import program
from pretrain.outside import printable
from pretrain.screen import refuse
from smet.errors import UserError

from ..packages import named

Report = dict[str, Any]


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the module's docstring, with the option ``--json``."""
    parser = argparse.ArgumentParser(
        prog=program(named(f"tools.{name}")), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    return parser


def add_family(parser: argparse.ArgumentParser) -> None:
    """The option ``--family``: code of one's own is imported where its user names it, not where a file does."""
    parser.add_argument(
        "--family", metavar="NAME",
        help="model family; one of your own is package.module:FAMILY, and is imported only if it is named here",
    )  # fmt: skip


def _give_memory_back() -> None:
    """Have the C library return blocks to the system when they are freed.

    glibc keeps blocks of up to 32 MB, and torch's alignment keeps it from using them again: the memory that
    passed through one tensor after the other would add up.
    """
    with suppress(AttributeError, OSError):  # other C libraries have no such setting
        ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def run_tool(
    options: argparse.Namespace, work: Callable[[argparse.Namespace], Report], describe: Callable[[Report], str]
) -> int:
    """Work and print the report. Returns the exit code: 0, 2 after one line about what to mend, 130 if interrupted."""
    _give_memory_back()
    try:
        report = work(options)
    except (UserError, OSError) as error:  # such as a full disk, or a folder without permission
        return refuse(error)
    except KeyboardInterrupt:
        print("error: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(report) if options.json else printable(describe(report)))
    return 0


def byte_count(size: float) -> str:
    """A number of bytes for a person: ``1.23 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
