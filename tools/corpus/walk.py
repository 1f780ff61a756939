"""Folders and patterns walked: every file once, links followed, cycles ended, what is no data counted."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from pretrain.errors import DataError

FOUND, FITTED, NAMED = "found", "fitted", "named"
"""How a file came in: found in a folder, fitted by a pattern, or named by its path."""


class PassedOver:
    """Files and folders that were not read, by reason."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        """The first of each reason, to look at."""

    def add(self, reason: str, path: str) -> None:
        """Count one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, path)

    def update(self, other: PassedOver) -> None:
        """Add those of ``other``."""
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        self.first = {**other.first, **self.first}

    def __str__(self) -> str:
        """``7: 4 hidden (a/.x), 3 .csv (b.csv)``."""
        reasons = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count:,} {reason} ({self.first[reason]})" for reason, count in reasons]
        return f"{sum(self.counts.values()):,}: " + ", ".join(parts)


class Entry(NamedTuple):
    """A file."""

    path: str
    how: str
    """``FOUND``, ``FITTED`` or ``NAMED``; only the first is chosen by its suffix."""
    linked: bool = False
    """Whether a link leads to it."""


def walk(root: str, passed: PassedOver, hidden: bool = False) -> Iterator[Entry]:
    """Files below ``root``, each folder once: first by their own names, then through links.

    Args:
        root: the folder; empty for the working folder, whose name the paths then lack.
        passed: takes what is passed over.
        hidden: whether names that begin with a dot count.

    Raises:
        DataError: a folder cannot be listed: its files would be missing without a word.
    """
    seen: set[str] = set()
    folders, links = [(root, False)], deque[str]()
    while folders or links:
        folder, linked = folders.pop() if folders else (links.popleft(), True)
        real = os.path.realpath(folder or ".")
        if real in seen:
            passed.add("links to a folder read already", folder)
            continue
        seen.add(real)
        for item in _listed(folder):
            path = os.path.join(folder, item.name)
            if item.name.startswith(".") and not hidden:
                passed.add("hidden", path)
            elif item.is_dir(follow_symlinks=False):
                folders.append((path, linked))
            elif os.path.isdir(path):  # where links go round, the entry itself would raise
                links.append(path)
            elif os.path.isfile(path):
                yield Entry(path, FOUND, linked or item.is_symlink())
            else:
                passed.add("broken links" if item.is_symlink() else "neither file nor folder", path)


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as items:
            return sorted(items, key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"folder {folder or '.'} cannot be read: {error.strerror}; mend that or leave it out") from None


def entries(name: str, passed: PassedOver) -> list[Entry]:
    """Files that one ``--input`` names: itself, those in a folder, or those that a pattern fits.

    A pattern takes a folder that it fits as if the folder had been named, and one that ends in ``*`` or ``**`` is
    its folder.

    Raises:
        DataError: it is a pipe or a device.
    """
    if os.path.isfile(name):
        return [Entry(name, NAMED)]
    if os.path.isdir(name):
        return list(walk(name, passed))
    if os.path.exists(name):
        raise DataError(
            f"input {name} is neither a file nor a folder; to read a pipe, give --input - and feed it there"
        )
    parts = name.split("/")
    hidden = any(part.startswith(".") and part.strip(".") for part in parts)
    if parts[-1] in ("*", "*.*"):
        parts.pop()
    while parts and parts[-1] == "**":
        parts.pop()
    rest = "/" if parts == [""] else "/".join(parts)
    if rest == name or glob.has_magic(rest):
        return list(_matches(rest, rest != name, passed, hidden))
    return list(walk(rest, passed, hidden)) if os.path.isdir(rest or ".") else []


def _matches(pattern: str, folders_only: bool, passed: PassedOver, hidden: bool) -> Iterator[Entry]:
    parts = pattern.split("/")
    if "**" not in parts:
        for path in sorted(glob.glob(pattern)):
            if os.path.isdir(path):
                yield from walk(path, passed, hidden)
            elif os.path.isfile(path) and not folders_only:
                yield Entry(path, FITTED, os.path.islink(path))
        return
    # Walked and compared: `glob` goes round in a circle of links, forty times.
    start = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:start]) or ("/" if start else "")
    fits = re.compile(_expression(parts[start:]) + "(/.+)?", re.DOTALL)
    for entry in walk(base, passed, hidden) if os.path.isdir(base or ".") else ():
        match = fits.fullmatch(os.path.relpath(entry.path, base or "."))
        if match and match[1]:
            yield entry
        elif match and not folders_only:
            yield entry._replace(how=FITTED)


def _expression(parts: list[str]) -> str:
    """A regular expression for a pattern's parts; ``**`` is any number of folders, the others are one name each."""
    folders = ["(?:[^/]+/)*" if part == "**" else _name(part) + "/" for part in parts[:-1]]
    return "".join(folders) + _name(parts[-1])


def _name(part: str) -> str:
    tokens = re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL)
    made = {"*": "[^/]*", "?": "[^/]"}
    return "".join(made.get(token) or (_choice(token) if len(token) > 1 else re.escape(token)) for token in tokens)


def _choice(token: str) -> str:
    """``[abc]`` or ``[!abc]``."""
    inner = token[1:-1].replace("\\", r"\\")
    return f"[^/{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
