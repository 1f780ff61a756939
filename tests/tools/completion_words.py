"""What there is to complete, read from the parsers of all commands.

``python -m tests.tools.completion_words`` writes it into tools/completion.json, after a change of a command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any
from unittest import mock

from tools.commands import WORDS, Command, Group
from tools.completion import WORDS_FILE
from tools.packages import named

Words = dict[str, dict[str, Any]]
"""By the words of a command: ``help``, ``options`` (flag -> help), ``values`` (flag -> choices), ``overrides``."""


class _ParserError(Exception):
    """Carries the parser of a command that was about to read its arguments."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__()
        self.parser = parser


def collect() -> Words:
    """All commands. Imports every one of their modules, so it takes seconds."""
    found: Words = {}
    for path, one in _walk(WORDS):
        if isinstance(one, Group):
            found[path] = {"help": one.help}
            continue
        parser = _parser_of(one, [])
        for word in one.before:
            parser = _commands_of(parser).get(word, parser)
        _add(found, path, parser, one.help)
        for word in one.words:
            _add(found, f"{path} {word}", _parser_of(one, [word]), "")
    return found


def _walk(commands: Mapping[str, Command | Group], before: str = "") -> Iterator[tuple[str, Command | Group]]:
    for word, one in commands.items():
        path = f"{before} {word}".strip()
        yield path, one
        if isinstance(one, Group):
            yield from _walk(one.commands, path)


def _parser_of(command: Command, arguments: list[str]) -> argparse.ArgumentParser:
    """The parser that ``main`` of a command makes, caught when it is about to be used."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserError(parser)

    main = import_module(named(command.module)).main
    methods = ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args")
    with mock.patch.multiple(argparse.ArgumentParser, **dict.fromkeys(methods, stop)):
        try:
            main([*command.before, *arguments])
        except _ParserError as caught:
            return caught.parser
    raise AssertionError(f"{command.module} parses nothing")


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _add(found: Words, path: str, parser: argparse.ArgumentParser, text: str) -> None:
    told: dict[str, Any] = {"help": _short(text or parser.description or ""), "options": {}}
    values = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        for flag in (flag for flag in action.option_strings if flag.startswith("--")):
            told["options"][flag] = _short(parser._get_formatter()._expand_help(action) if action.help else "")
            if action.choices:
                values[flag] = [str(choice) for choice in action.choices]
        if action.dest == "overrides":
            told["overrides"] = True
    if values:
        told["values"] = values
    found[path] = told
    for word, inner in _commands_of(parser).items():
        _add(found, f"{path} {word}", inner, "")


def _short(text: str) -> str:
    """The beginning of a help text, on one line."""
    line = " ".join(text.split())
    line = line.split("; ")[0].split(". ")[0].rstrip(".")
    return line if len(line) <= 70 else f"{line[:67].rstrip()}..."


def content() -> str:
    """The file: a command a line, so that changes of several are merged line by line."""
    lines = [f"{json.dumps(path)}: {json.dumps(told)}" for path, told in sorted(collect().items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    WORDS_FILE.write_text(content(), encoding="utf-8")
