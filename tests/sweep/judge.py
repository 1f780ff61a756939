"""What may come of a bad input: a right result or a clear line; never a traceback, a signal, code run, or silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "PLANTED"
"""A file of this name appears where something in an input was run."""

CODES = (0, 1, 2, 75)
PYTHON = re.compile(
    r"\b(TypeError|KeyError|AttributeError|IndexError|AssertionError|RecursionError|NoneType|has no attribute|"
    r"not subscriptable|invalid literal for int|could not convert string|list indices|not enough values to unpack)\b"
)
"""Python speaking of itself: no sentence for a user."""
LONGEST = 1500
"""Characters of one error line; a run file's own text may be quoted in it."""


def verdict(case: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """What is wrong with the answer to a case; None where nothing is."""
    if list(Path(case["folder"]).rglob(MARKER)):
        return "code of the input was run"
    if "died" in answer:
        return f"the process died: {answer['died']}"
    if "hung" in answer:
        return f"no answer in {answer['hung']:.0f} s"
    out, err = answer["out"], answer["err"]
    if answer["code"] is None or "Traceback (most recent call last)" in out + err:
        return "traceback"
    if answer["code"] not in CODES:
        return f"exit code {answer['code']}"
    if answer["code"] == 0:
        return None if (out + err).strip() else "exit code 0 and not a word"
    errors = [line for line in err.splitlines() if "error: " in line]
    if not errors:
        return None if answer["code"] == 1 and out.strip() else f"exit code {answer['code']} without an error line"
    for line in map(_without_own_words(case), errors):
        if len(line) > LONGEST:
            return f"an error line of {len(line)} characters"
        if PYTHON.search(line):
            return "an error line in Python's words"
        if "\x1b" in line or any(ord(letter) < 32 and letter != "\t" for letter in line):
            return "control characters in an error line"
    return None


def _without_own_words(case: dict[str, Any]) -> Callable[[str], str]:
    """Takes out what the line quotes of the command line: that may be long or odd, it is the user's own."""

    def strip(line: str) -> str:
        for word in case["argv"]:
            for shown in (word, repr(word)[1:-1]) if len(word) > 3 else ():
                line = line.replace(shown.rstrip("/"), "")
        return line

    return strip


def told(case: dict[str, Any], answer: dict[str, Any], wrong: str) -> str:
    """A fault as one block of text, to be reproduced by hand."""
    tail = "\n".join(f"    {line}" for line in (answer.get("err", "") or answer.get("out", "")).splitlines()[-6:])
    return (
        f"{case['tool']} #{case['number']} ({case['how']}): {wrong}\n  in {case['folder']}/in\n  {case['argv']}\n{tail}"
    )
