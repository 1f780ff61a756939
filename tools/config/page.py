"""docs/keys.md: every key of a run file on one page."""

from __future__ import annotations

import json
import typing
from typing import Any

from smet.fields import WORDS

from .keys import REQUIRED, Key, keys_of, mapping_of, sections, summary

HEAD = """# Keys of a run file

This page is made by `python -m tools.config keys > docs/keys.md`. Editors that read JSON schemas know the same: every
run file in `configs/` names `configs/schema.json` in its first line, and `smet config new` writes such a line.

A run file has these sections, and `base`: a run file, or a list of them, that is merged below it (relative to its
folder). A key without a value (`null`) is at its default. Unknown keys are refused with the nearest name, and `smet
config show FILE` prints where every value comes from. *Own* among the choices: also `package.module:name`, something
of your own ([extending.md](extending.md)).

*On resume* says whether a run that goes on in its folder may have another value: *yes*; *in a branch*: only in a
folder of its own, which goes on from the other's checkpoint (`checkpoint.resume`); *no*: another value is another
run.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in sections():
        keys = list(keys_of(section))
        parts += [f"## {section}\n", f"{_marked(summary(section))}\n"]
        if keys:
            parts += [
                "| key | type | default | choices | meaning | on resume |",
                "| --- | --- | --- | --- | --- | --- |",
            ]
            parts += [_row(key) for key in keys] + [""]
        if section == "model":
            parts.append("Keys of the family `llama`; another family has its own ([families.md](families.md)).\n")
    return "\n".join(parts).rstrip("\n")


def _row(key: Key) -> str:
    few = [f"`{one}`" for one in key.choices] + (["own"] if key.own else [])
    cells = (
        f"`{key.name}`", kind_words(key.kind), default_text(key), ", ".join(few), _marked(key.meaning),
        key.on_resume,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _marked(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|").replace("**", r"\*\*")


def kind_words(kind: Any) -> str:
    """An annotation in words: ``list of text``."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if (inner := mapping_of(kind)) is not None:
        return f"list of {inner.__name__.removesuffix('Config').lower()}s"
    if origin is typing.Annotated:
        return "path"
    if origin is typing.Literal:
        return kind_words(type(parts[0]))
    if origin is tuple:
        return f"list of {kind_words(parts[0])}" if parts[-1] is Ellipsis else f"{len(parts)} {kind_words(parts[0])}s"
    words = WORDS.get(origin or kind, str(kind)).removeprefix("a ").removeprefix("finite ")
    return words


def default_text(key: Key) -> str:
    """The default as YAML has it."""
    if key.default is REQUIRED:
        return "**needed**"
    if key.default is None:
        return "none"
    return f"`{key.default if isinstance(key.default, str) else json.dumps(key.default)}`"
