"""Fills the planner's tables into a Markdown page: what stands between two markers is what a command prints.

<!-- plan: configs/7b.yaml --world-size 64 -->
...
<!-- /plan -->

python -m tools.planner.page docs/layouts.md           # from the checkout's root
python -m tools.planner.page docs/layouts.md --check   # exit code 1 if the page is not up to date
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys

from pretrain.command import program
from pretrain.errors import ConfigError, UserError
from pretrain.files import write_atomically
from pretrain.paths import path_argument
from pretrain.screen import on_screen, refuse

from . import cli

MARKED = re.compile(r"(<!-- plan: (?P<arguments>[^\n]*?) -->\n).*?(<!-- /plan -->)", re.DOTALL)


def filled(text: str) -> str:
    """``text`` with every marked part replaced by what its command prints.

    Raises:
        ConfigError: the planner refuses a command of the page.
    """
    return MARKED.sub(lambda match: f"{match[1]}\n{printed(match['arguments'].split())}\n{match[3]}", text)


def printed(arguments: list[str]) -> str:
    """What ``smet plan`` prints with these arguments."""
    screen, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(errors):
        code = cli.main(arguments)
    if code:
        raise ConfigError(f"smet plan {' '.join(arguments)} ends with {errors.getvalue().strip()}")
    return screen.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program(f"{__package__}.page"), description="Fill the planner's tables in.")
    parser.add_argument("page", type=path_argument, help="Markdown file with markers, such as docs/layouts.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    parser.add_argument("--json", action="store_true", help="print {page, commands, changed}")
    options = parser.parse_args(arguments)
    try:
        if not options.page.is_file():
            raise ConfigError(f"{options.page} does not exist, expected a Markdown page with plan markers")
        old = options.page.read_text(encoding="utf-8")
        new = filled(old)
    except UserError as error:
        return refuse(error)
    if new != old and not options.check:
        write_atomically(options.page, new)
    commands = [match["arguments"] for match in MARKED.finditer(new)]
    if options.json:
        print(json.dumps({"page": str(options.page), "commands": commands, "changed": new != old}))
    else:
        state = "is up to date" if new == old else "is out of date" if options.check else "was updated"
        print(f"{options.page} {state}: {len(commands)} commands")
    return int(options.check and new != old)


if __name__ == "__main__":
    sys.exit(on_screen(main))
