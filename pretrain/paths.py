"""Paths as people write them: ``~`` is the home folder, wherever a path is given.

A shell expands ``~`` only at the start of a word, so in a run file, in ``train.output_dir=~/x`` and in ``--output=~/x``
it comes here as it is. Variables are refused instead: hosts and days may disagree on what ``$SCRATCH`` is, a run
folder may not.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, Any

PATH = "a path"
LocalPath = Annotated[str, PATH]
"""Type of settings that name a file or folder; ``pretrain.config.typed`` expands them."""

LONGEST_PATH, LONGEST_NAME = 4000, 240
"""In bytes: what Linux allows (4,095 and 255), less what names of files and endings need behind it."""
_VARIABLE = re.compile(r"\$(\{\w+\}|[A-Za-z_]\w*)")


def expanded(text: str) -> str:
    """``text`` with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ValueError: there is no such user, it holds a shell variable, or a character that no path has; in words that
            follow what was found.
    """
    if any(ord(letter) < 32 for letter in text):
        raise ValueError(f"{text!r}, expected a path without control characters")
    _require_short(text)
    if variable := _VARIABLE.search(text):
        raise ValueError(
            f"'{text}', expected a path without variables: {variable[0]} is not filled in here; write the path out, or "
            "let the shell fill it in (double quotes, not single ones)"
        )
    home = os.path.expanduser(text)
    if text.startswith("~") and home == text:
        raise ValueError(
            f"'{text}', expected a path, but no home folder is known for {text.split('/')[0]}; write the path out, or "
            f"./{text} for a name that begins with ~"
        )
    return home


def _require_short(text: str) -> None:
    """Whether there is anything at a longer path the system would not say, but fail to be asked."""
    size, name = len(os.fsencode(text)), max(len(os.fsencode(part)) for part in text.split("/"))
    if size > LONGEST_PATH:
        raise ValueError(f"'{text[:40]}...', expected a path of at most {LONGEST_PATH:,} bytes, not {size:,}")
    if name > LONGEST_NAME:
        raise ValueError(f"'{text[:40]}...', expected names of at most {LONGEST_NAME} bytes in a path, not {name:,}")


def path_text(text: str) -> str:
    """``expanded`` as argparse wants its ``type``: for patterns, and names that may be paths."""
    if not text.strip():  # "$DIR" of a variable that is not set: as a pattern it would be the whole disk
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a path; is a variable of the shell not set?")
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {error}") from None


def prefix_text(text: str) -> str:
    """``path_text`` for what ``.bin`` and other suffixes are put to, which a folder's name with a slash cannot be."""
    path = path_text(text)
    if os.path.basename(path) in ("", ".", ".."):
        raise argparse.ArgumentTypeError(
            f"is '{text}', a folder, expected the beginning of file names, such as {path.rstrip('./') or '.'}/NAME"
        )
    return path


def why_no_file(path: str | Path) -> str:
    """What ``path`` is, where a file to read was expected and there is none."""
    if os.path.isdir(path):
        return "is a folder"
    if os.path.exists(path):
        return "is no plain file"
    return "is a link to nothing" if os.path.islink(path) else "does not exist"


def resolved(path: str | Path) -> Path:
    """Where ``path`` really lies, without links; a loop of links stays as it is, for whoever reads it to tell."""
    return Path(os.path.realpath(path))


def path_argument(text: str) -> Path:
    """``path_text`` as a path."""
    return Path(path_text(text))


def expanded_within(value: Any, problems: list[str], where: str) -> Any:
    """Settings of another program, passed through: those whose key ends in path, dir, folder or file are expanded.

    Args:
        value: plain data.
        problems: takes what cannot be expanded.
        where: the dotted name of ``value``.
    """
    if isinstance(value, dict):
        return {key: expanded_within(item, problems, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, str) and where.endswith(("path", "dir", "folder", "file")):
        try:
            return expanded(value)
        except ValueError as error:
            problems.append(f"{where} is {error}")
    return value
