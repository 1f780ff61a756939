"""A tiny model's files: other names, and a ``config.json`` of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.models.family import Droppable
from tests.families.tiny.config import TinyConfig

_KEYS = {
    "words": "vocab", "features": "n_embd", "inner": "n_inner", "depth": "n_layer", "heads": "n_head",
    "context": "n_ctx", "spread": "std", "gated": "gated_layers", "tied": "tie",
}  # fmt: skip


def file_name(name: str) -> str:
    """What the files call the weight ``name``."""
    return f"transformer.{name.replace('stack.', 'h.').replace('.scale', '.weight').replace('.shift', '.bias')}"


def to_config(model: TinyConfig, dtype: str, tokens: Mapping[str, int | None]) -> dict[str, Any]:
    """The content of ``config.json``."""
    plain = {theirs: getattr(model, ours) for ours, theirs in _KEYS.items()}
    return {"model_type": "tiny", "dtype": dtype, **plain, "gated_layers": list(model.gated), **tokens}


def from_config(path: Path, raw: dict[str, Any], dropping: Droppable) -> dict[str, Any]:
    """The keys of a ``model`` section."""
    if raw.get("model_type") != "tiny":
        raise ConfigError(f"{path} has model_type {raw.get('model_type')!r}, expected 'tiny'")
    known = {*_KEYS.values(), "model_type", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"}
    unknown = [key for key in raw if key not in known and not dropping.takes(key)]
    if unknown:
        raise ConfigError(f"{path} sets {unknown[0]}, which a tiny model does not have")
    return {ours: raw[theirs] for ours, theirs in _KEYS.items() if theirs in raw}


def says_nothing_new(name: str, model: TinyConfig, tensor: Callable[[str], Tensor]) -> bool:
    """Its files hold nothing beside its weights."""
    return False
