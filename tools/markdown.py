"""Tables of pages, as Markdown."""

from __future__ import annotations


def table(heads: list[str], rows: list[list[str]]) -> str:
    """One whose columns but the first are right-aligned."""
    lines = [heads, ["---", *(["---:"] * (len(heads) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
