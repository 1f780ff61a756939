"""From a raw record to the text of one document, or the reason why it gives none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tools.corpus.readers import Problem, Raw


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of preprocessing that shape the output."""

    tokenizer: str
    """Path of the tokenizer file."""
    eos_token: str | None = None
    text_column: str = "text"
    text_mode: str = "file"
    max_document_bytes: int = 16 << 20
    """Longer documents are rejected."""

    @property
    def columns(self) -> list[str]:
        """Columns a record must have."""
        return [self.text_column]

    @property
    def whole_files(self) -> bool:
        """Whether a text file is one document."""
        return self.text_mode == "file"

    def described(self) -> dict[str, Any]:
        """For the manifest: everything but the tokenizer's path, whose hash stands beside it."""
        described = asdict(self)
        del described["tokenizer"]
        return described


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
    record = _parse(payload) if isinstance(payload, bytes) else payload
    text = _column(record, settings)
    if (
        len(text) * 4 > settings.max_document_bytes
        and len(text.encode("utf-8", "replace")) > settings.max_document_bytes
    ):
        raise RejectedError("too long", f"more than {settings.max_document_bytes} bytes (--max-document-bytes)")
    return text


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RejectedError("wrong encoding", f"not UTF-8: {error.reason} at byte {error.start}") from None


def _parse(line: bytes) -> Any:
    text = _decode(line)
    try:
        return json.loads(text)
    except RecursionError:
        raise RejectedError("broken JSON", "nested too deeply") from None
    except ValueError as error:
        raise RejectedError("broken JSON", str(error)) from None


def _column(record: Any, settings: Settings) -> str:
    if not isinstance(record, dict):
        raise RejectedError("broken JSON", f"a {type(record).__name__}, expected an object")
    text = record.get(settings.text_column)
    if text is None:
        raise RejectedError("missing column", f"no text in column '{settings.text_column}'")
    if not isinstance(text, str):
        raise RejectedError("not text", f"column '{settings.text_column}' is a {type(text).__name__}, expected text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RejectedError("wrong encoding", f"{error.reason} at character {error.start}") from None
    return text
