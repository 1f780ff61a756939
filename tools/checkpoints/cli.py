"""What the checkpoint tools' command lines share: errors in one line with exit code 2, and ``--json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from smet.errors import UserError

Report = dict[str, Any]


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the module's docstring, with the option ``--json``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tools.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on stdout")
    return parser


def run_tool(
    options: argparse.Namespace, work: Callable[[argparse.Namespace], Report], describe: Callable[[Report], str]
) -> int:
    """Work and print the report. Returns the exit code: 0, 2 after one line about what to mend, 130 if interrupted."""
    try:
        report = work(options)
    except UserError as error:
        for problem in getattr(error, "problems", [str(error)]):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission: the text names the file
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(report) if options.json else describe(report))
    return 0


def byte_count(size: float) -> str:
    """A number of bytes for a person: ``1.23 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
