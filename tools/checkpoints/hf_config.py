"""LLaMA's shape as Hugging Face's ``config.json``, both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError


def to_config_json(model: ModelConfig, dtype: str, tokens: dict[str, int | None]) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        dtype: of the stored weights, by torch's name, such as ``float32``.
        tokens: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as they are known.
    """
    shape = dataclasses.asdict(model)
    # Releases of transformers before 5 read rope_theta and torch_dtype, later ones rope_parameters and dtype.
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": tokens.get("bos_token_id"),
        "eos_token_id": tokens.get("eos_token_id"),
        "pad_token_id": tokens.get("pad_token_id"),
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def from_config_json(folder: Path) -> ModelConfig:
    """The shape of the LLaMA in ``folder``, with transformers' defaults for what its ``config.json`` leaves out.

    Raises:
        ConfigError: it is no LLaMA, or one with parts that this program does not build.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}), expected the config.json of a LLaMA") from None
    if kind != "llama":
        raise ConfigError(f"{path} has model_type {kind!r}, expected 'llama': no other architecture can be imported")
    if "quantization_config" in raw:
        raise ConfigError(f"{path} has a quantization_config, expected plain weights; dequantize the model first")
    given = _with_defaults(path, raw)
    rope = dict(given.get("rope_parameters") or {})
    if rope.pop("rope_type", "default") != "default" or rope.pop("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ConfigError(
            f"{path} scales its rotary frequencies ({given['rope_parameters']}), expected rope_type 'default': the "
            "model built here has plain rotary embeddings only"
        )
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    shape = {name: given[name] for name in names if name in given}
    model = ModelConfig(**{**shape, "rope_theta": float(rope.get("rope_theta", 10000.0))})
    if problems := model.problems():
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return model


def _with_defaults(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    from transformers import LlamaConfig

    try:
        given: dict[str, Any] = LlamaConfig.from_dict(raw).to_dict()
    except Exception as error:
        # Its validation raises classes of several libraries; each means a value that LLaMA cannot have.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} is refused by transformers: {reason}") from None
    return given
