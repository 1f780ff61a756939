"""From a raw record to the text of one document, or the reason why it gives none."""

from __future__ import annotations

import argparse
import json
import string
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pretrain.errors import DataError

from .filters import Filters
from .raw import Problem, Raw


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of preprocessing that shape the output."""

    tokenizer: str
    """Path of the tokenizer file."""
    eos_token: str | None = None
    text_column: str = "text"
    template: str | None = None
    """Text made of several columns, such as ``{title}\\n\\n{text}``; instead of ``text_column``."""
    text_mode: str = "file"
    max_document_bytes: int = 16 << 20
    """Longer documents are rejected."""

    filters: Filters = field(default_factory=Filters)

    @cached_property
    def columns(self) -> list[str]:
        """Columns a record must have."""
        return template_columns(self.template) if self.template else [self.text_column]

    @property
    def whole_files(self) -> bool:
        """Whether a text file is one document."""
        return self.text_mode == "file"

    def described(self) -> dict[str, Any]:
        """For the manifest: everything but the tokenizer's path, whose hash stands beside it."""
        described = asdict(self)
        del described["tokenizer"]
        return described


_ONE_PER_LINE = "expected one object per line; jq -c 'if type == \"array\" then .[] else . end' makes that"


class RejectedError(Exception):
    """A record that gives no document."""

    def __init__(self, category: str, detail: str):
        super().__init__(category, detail)
        self.problem = Problem(category, detail)


def text_of(raw: Raw, settings: Settings) -> str:
    """The document's text; empty where the record has none.

    Raises:
        RejectedError: the record is broken, or lacks what the settings ask for.
    """
    payload = raw.payload
    if isinstance(payload, Problem):
        raise RejectedError(*payload)
    if raw.source.kind == "text":
        assert isinstance(payload, bytes)
        return _decode(payload).rstrip("\r\n") if not settings.whole_files else _decode(payload)
    record = _parse(payload, settings.columns) if isinstance(payload, bytes) else payload
    text = _text(record, settings)
    if (
        len(text) * 4 > settings.max_document_bytes
        and len(text.encode("utf-8", "replace")) > settings.max_document_bytes
    ):
        raise RejectedError("too long", f"more than {settings.max_document_bytes} bytes (--max-document-bytes)")
    return text


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of reading that every tool's command line has."""
    return {
        "text_column": args.text_column or "text",
        "template": _unescape(args.template),
        "text_mode": args.text_mode or "file",
        "max_document_bytes": args.max_document_bytes,
    }


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RejectedError("wrong encoding", f"not UTF-8: {error.reason} at byte {error.start}") from None


def _parse(line: bytes, columns: list[str]) -> Any:
    text = _decode(line)
    try:
        record = json.loads(text)
    except RecursionError:
        raise RejectedError("broken JSON", "nested too deeply") from None
    except ValueError as error:
        raise RejectedError("broken JSON", _explained(str(error), text)) from None
    for name in columns:
        # Only where the name stands there twice can it be a key twice, of which Python would keep the last.
        if isinstance(record, dict) and text.count(json.dumps(name)) > 1 and _keys(text).count(name) > 1:
            raise RejectedError("duplicate key", f"several values of column '{name}'")
    return record


def _keys(text: str) -> list[str]:
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    return [key for key, _ in pairs]


def _explained(reason: str, text: str) -> str:
    if text.strip() in ("{", "[", "[{"):
        return f"{reason}: {_ONE_PER_LINE}"
    return reason if text.endswith("\n") else f"{reason} (the last line, without a line end: the file may be cut off)"


def _text(record: Any, settings: Settings) -> str:
    if isinstance(record, list) and any(isinstance(item, dict) for item in record):
        raise RejectedError("JSON array", f"objects in an array: {_ONE_PER_LINE}")
    if not isinstance(record, dict):
        raise RejectedError("broken JSON", f"a {type(record).__name__}, expected an object")
    columns = {name: _column(record, name) for name in settings.columns}
    text = settings.template.format(**columns) if settings.template else columns[settings.text_column]
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RejectedError("wrong encoding", f"{error.reason} at character {error.start}") from None
    return text


def _column(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        raise RejectedError("missing column", f"no text in column '{name}'")
    if isinstance(value, bytes):
        return _decode(value)
    if not isinstance(value, str):
        raise RejectedError("not text", f"column '{name}' is a {type(value).__name__}, expected text")
    return value


def template_columns(template: str) -> list[str]:
    """Names in a template's braces.

    Raises:
        DataError: the template is broken, or asks for more than plain columns.
    """
    remedy = r"expected columns in braces, such as '{title}\n\n{text}'"
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise DataError(f"--template {template!r} is broken ({error}); {remedy}") from None
    if not fields or not all(name.isidentifier() and not spec and not how for name, spec, how in fields):
        raise DataError(f"--template {template!r} names no plain columns; {remedy}")
    return sorted({name for name, _, _ in fields})


def _unescape(template: str | None) -> str | None:
    """A template from the command line, checked: a shell hands over ``\\n`` as two characters."""
    if template is None:
        return None
    template = template.replace("\\n", "\n").replace("\\t", "\t")
    template_columns(template)
    return template
