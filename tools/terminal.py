"""What a command prints: tables drawn as tables on a terminal, and as Markdown, which they are, in a file or a pipe."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec

RULE = re.compile(r"\|( *:?-+:? *\|)+")
"""Below the heads of a Markdown table; a colon behind the dashes = numbers."""


def show(text: str) -> None:
    """Print ``text``; its tables as ``rich`` draws them where there is a terminal for that."""
    is_dumb = not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb"
    if is_dumb or find_spec("rich") is None:
        print(text)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts(text):
        if isinstance(part, str):
            console.print(part, soft_wrap=True)
            continue
        heads, rule, *rows = part
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for head, dashes in zip(heads, rule, strict=True):
            table.add_column(head, justify="right" if dashes.endswith(":") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell.strip("*") for cell in row), style="bold" if row[0].startswith("**") else None)
        console.print(table)


def parts(text: str) -> Iterator[str | list[list[str]]]:
    """Lines and tables in their order: of a table its rows of cells, the heads and the rule below them first."""
    table: list[list[str]] = []
    lines = text.split("\n")
    for at, line in enumerate(lines):
        begins = line.startswith("|") and RULE.fullmatch("".join(lines[at + 1 : at + 2])) is not None
        if begins or (table and line.startswith("|")):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if table:
            yield table
            table = []
        yield line
    if table:
        yield table
