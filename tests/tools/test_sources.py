"""The options that say what to read."""

from __future__ import annotations

import argparse

from tools.corpus.inputs import add_source_arguments


def test_repeated_options_add_up() -> None:
    """People repeat --exclude; the last one alone would let everything else in."""
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    options = parser.parse_args(
        ["--input", "a", "b", "--input", "c", "--exclude", "*/x/*", "--exclude", "*/y/*", "--include", "*.py",
         "--include", "*.pyi"]
    )  # fmt: skip
    assert options.input == ["a", "b", "c"]
    assert options.exclude == ["*/x/*", "*/y/*"]
    assert options.include == ["*.py", "*.pyi"]
    assert parser.parse_args([]).exclude == []
