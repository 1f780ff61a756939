"""Corpora as the settings name them, in the form in which ``pretrain.data`` opens them."""

from __future__ import annotations

import dataclasses
from typing import Any

from pretrain.config.schema import DataConfig, Source


def training_spec(data: DataConfig) -> Any:
    """What is trained on, for ``open_corpus``."""
    stages: list[Any] = [
        {"blend": [dataclasses.asdict(source) for source in stage.blend]}
        | ({} if stage.until_tokens is None else {"until_tokens": stage.until_tokens})
        for stage in data.curriculum
    ]
    return stages or blend_spec(data.train)


def blend_spec(sources: tuple[Source, ...]) -> Any:
    """A blend, for ``open_corpus``; falsy where there is none."""
    if len(sources) == 1:
        return sources[0].path
    return [{"path": source.path, "weight": source.weight} for source in sources]
