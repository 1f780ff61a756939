"""``smet COMMAND ...``; from a checkout, ``python -m tools COMMAND ...``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from pretrain.errors import UserError, nearest
from pretrain.exit_codes import DONE, USER
from pretrain.leaving import leave_with
from pretrain.screen import refuse

from .commands import COMMANDS, WORDS, Command, Group
from .extras import missing
from .packages import named


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the command; ``USER`` for a word that is none."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--version"]:
        from smet import __version__

        print(f"smet {__version__}")
        return DONE
    path, found = list[str](), Group("pre-train sparse LLaMA models", WORDS)
    while words and not words[0].startswith("-"):
        one = found.commands.get(words[0])
        if one is None:
            return _refuse(path, f"'{words[0]}' is no command", nearest(words[0], found.commands))
        path, words = [*path, words[0]], words[1:]
        if isinstance(one, Command):
            return call(one, path, words)
        found = one
    if words and words[0] not in ("-h", "--help"):
        return _refuse(path, f"'{words[0]}' is no option", "")
    print(usage(path, found), file=sys.stdout if words else sys.stderr)
    return DONE if words else USER


def _refuse(path: list[str], problem: str, nearest: str) -> int:
    place = " ".join([program(), *path])
    return refuse(UserError(f"{problem} of {place}{nearest}; {place} --help lists its commands"))


def call(command: Command, path: list[str], arguments: list[str]) -> int:
    """Import the module of ``command``, and call it. A package that is missing is one line."""
    words = [program(), *path]
    try:
        for name in command.needs:
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
        from pretrain.command import call_it

        begin = len(words) - len(command.before)
        # The module's own parsers put these words there themselves.
        call_it(" ".join(words[:begin] if tuple(words[begin:]) == command.before else words))
        if command.own_code:
            sys.path.append(os.getcwd())  # at the end: what lies there stands in for no package
        code: int = import_module(named(command.module)).main([*command.before, *arguments])
        return code
    except ModuleNotFoundError as error:
        if (said := missing(" ".join(words), error.name)) is None:
            raise
        return refuse(UserError(said))


def program() -> str:
    """How this front was called."""
    return "smet" if os.path.basename(sys.argv[0]) == "smet" else f"python -m {__package__}"


def usage(path: list[str], group: Group) -> str:
    """The commands of ``smet``, or those of a group."""
    listed = {"": group.commands} if path else COMMANDS
    width = max(len(word) for commands in listed.values() for word in commands) + 2
    place = " ".join([program(), *path])
    lines = [f"usage: {place} COMMAND ...", "", group.help, ""]
    for heading, commands in listed.items():
        lines += [f"{heading}:"] if heading else []
        lines += [f"  {word:<{width}}{one.help}" for word, one in commands.items()]
        lines += [""]
    return "\n".join([*lines, f"{place} COMMAND --help says more of each."])


def smet() -> NoReturn:
    """The console script."""
    leave_with(main)


if __name__ == "__main__":
    leave_with(main)
