"""Simple quality filters that know no language: length, share of letters, repeated lines.

The thresholds of the last two follow Gopher's rules (Rae et al., arXiv 2112.11446, table A1), taken to
characters so that they hold for scripts without spaces between words.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pretrain.errors import DataError
from pretrain.numbers import finite


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Documents are kept that pass every filter; None = the filter is off."""

    min_chars: int | None = None
    max_chars: int | None = None
    min_letter_fraction: float | None = None
    """Letters among all characters that are not white space; Gopher keeps 0.8 of words with a letter."""
    max_repeated_line_fraction: float | None = None
    """Lines equal to an earlier line, among all lines that are not blank; Gopher's limit is 0.3."""

    def failed(self, text: str) -> str | None:
        """Name of the first filter that ``text`` does not pass."""
        if self.min_chars is not None and len(text) < self.min_chars:
            return "min_chars"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "max_chars"
        if self.min_letter_fraction is not None and letter_fraction(text) < self.min_letter_fraction:
            return "min_letter_fraction"
        limit = self.max_repeated_line_fraction
        if limit is not None and repeated_line_fraction(text) > limit:
            return "max_repeated_line_fraction"
        return None


def letter_fraction(text: str) -> float:
    """Letters of any script among the characters that are not white space."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible) if visible else 0.0


def repeated_line_fraction(text: str) -> float:
    """Lines that equal an earlier one, among the lines that are not blank."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that leave documents out."""
    group = parser.add_argument_group("filters (off unless given)")
    group.add_argument("--deduplicate", action="store_true", help="keep the first of several equal documents")
    group.add_argument("--min-chars", type=int, metavar="N", help="leave out shorter documents")
    group.add_argument("--max-chars", type=int, metavar="N", help="leave out longer documents")
    group.add_argument(
        "--min-letter-fraction", type=finite, metavar="F", help="leave out documents with fewer letters, such as 0.6"
    )
    group.add_argument(
        "--max-repeated-line-fraction", type=finite, metavar="F", help="leave out repetitive documents, such as 0.3"
    )


def filters_from(args: argparse.Namespace) -> Filters:
    """The filters that the command line asks for.

    Raises:
        DataError: a threshold out of range.
    """
    for name in ("min_letter_fraction", "max_repeated_line_fraction"):
        value = getattr(args, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise DataError(f"--{name.replace('_', '-')} is {value}, expected a fraction in [0, 1]")
    return Filters(
        min_chars=args.min_chars,
        max_chars=args.max_chars,
        min_letter_fraction=args.min_letter_fraction,
        max_repeated_line_fraction=args.max_repeated_line_fraction,
    )
