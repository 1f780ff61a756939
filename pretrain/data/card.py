"""The card of a trained tokenizer: what it was trained on and how well it does, beside its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.outside import read_json

_FIELDS = {"sha256", "vocab_size", "model_type", "bytes_per_token"}


def card_path(prefix: str) -> Path:
    """``PREFIX.card.json``. Not ``.json``: transformers would take ``tokenizer.json`` for a tokenizer of its own."""
    return Path(f"{prefix}.card.json")


def old_card(path: Path) -> dict[str, Any] | None:
    """The card in the ``PREFIX.json`` that it was written to until 2026; None where that is something else."""
    try:
        given = read_json(path)
    except (OSError, ValueError):
        return None
    return given if isinstance(given, dict) and given.keys() >= _FIELDS else None
