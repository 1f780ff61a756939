"""LLaMA in Hugging Face's files: ``config.json``, both ways, and the names of tensors, which are ours."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.models.family import Droppable
from pretrain.models.llama.config import LlamaConfig

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FREQUENCIES = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")


def file_name(name: str) -> str:
    """What the files call the weight ``name``."""
    return name


def says_nothing_new(name: str, model: LlamaConfig, tensor: Callable[[str], Tensor]) -> bool:
    """Whether ``name`` is a copy of the embedding that is tied as the head, or rotary frequencies of ``model``."""
    if name == _HEAD and model.tie_word_embeddings:
        return torch.equal(tensor(_HEAD), tensor(_EMBEDDING))
    if _FREQUENCIES.match(name):  # older releases of transformers stored what is computed from the settings
        pairs = torch.arange(0, model.head_dim, 2) / model.head_dim
        found, expected = tensor(name), model.rope_theta**-pairs
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-2, atol=1e-6)
    return False


def to_config(model: LlamaConfig, dtype: str, tokens: Mapping[str, int | None]) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        dtype: of the stored weights, by torch's name, such as ``float32``.
        tokens: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as they are known.
    """
    ours = ("family", "initializer")  # what the weights started from is no matter of who reads them
    shape = {key: value for key, value in dataclasses.asdict(model).items() if key not in ours}
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


_IGNORED = frozenset((
    "_name_or_path", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "sep_token_id", "cls_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "dtype", "torch_dtype", "transformers_version", "use_cache", "pretraining_tp", "return_dict",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "task_specific_params", "tokenizer_class", "prefix", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids", "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences",
    "exponential_decay_length_penalty", "remove_invalid_values", "torchscript", "use_bfloat16", "rope_theta",
    "rope_scaling", "rope_parameters", "model_type",
))  # fmt: skip
"""Keys of ``config.json`` that say nothing of what the model computes, or are looked at one by one below."""
_NEVER = ("model_type", "rope_parameters", "rope_theta", "quantization_config")


def from_config(path: Path, raw: dict[str, Any], dropping: Droppable) -> dict[str, Any]:
    """The keys of a ``model`` section that build the LLaMA whose ``config.json``, at ``path``, holds ``raw``.

    transformers' defaults stand for what it leaves out.

    Args:
        dropping: keys that may be left out.

    Raises:
        ConfigError: it is no LLaMA, or one with parts that this program does not build; names every such key.
    """
    kind = raw.get("model_type")
    if kind != "llama":
        raise ConfigError(
            f"{path} has model_type {_brief(kind)}, expected 'llama': no other architecture can be imported"
        )
    if raw.get("quantization_config"):
        raise ConfigError(f"{path} has a quantization_config, expected plain weights; dequantize the model first")
    given = _with_defaults(path, _understood(path, raw, dropping))
    rope = dict(given.get("rope_parameters") or {})
    if rope.pop("rope_type", "default") != "default" or rope.pop("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ConfigError(
            f"{path} scales its rotary frequencies ({_brief(given['rope_parameters'])}), expected rope_type 'default': "
            "the model built here has plain rotary embeddings only"
        )
    shape = {name: given[name] for name in _names() if name in given}
    return {**shape, "rope_theta": rope.get("rope_theta", 10000.0)}


def _names() -> set[str]:
    return {field.name for field in dataclasses.fields(LlamaConfig)} - {"family"}


def _understood(path: Path, raw: dict[str, Any], dropping: Droppable) -> dict[str, Any]:
    """``raw`` without keys that are dropped; every other one is either taken, or says nothing of the function.

    Raises:
        ConfigError: the others, one sentence each.
    """
    shape = _names()
    problems = []
    kept = {}
    for key, value in raw.items():
        known = key in shape or key in _IGNORED
        # Switched off, whatever it would do: no sliding window, no dropout, no expert.
        off = value is None or (isinstance(value, (bool, int, float, str, list, dict)) and not value)
        if (not known and not off) or (value and key in ("attention_bias", "mlp_bias", "rope_scaling")):
            if key not in _NEVER and dropping.takes(key):
                continue
            if not known:
                problems.append(
                    f"{path} sets {key} to {_brief(value)}, which the model built here does not have"
                    f"{' (code of its own is never run)' if key == 'auto_map' else ''}; it is another model, unless "
                    f"you drop it: --drop {key}"
                )
        if known:
            kept[key] = value
    if problems:
        raise ConfigError(problems)
    return kept


def _brief(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _with_defaults(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    from transformers import LlamaConfig

    try:
        given: dict[str, Any] = LlamaConfig.from_dict(raw).to_dict()
    except Exception as error:
        # Its validation raises classes of several libraries; each means a value that LLaMA cannot have.
        reason = re.sub(r"\b[A-Z]\w+Error: ", "", " ".join(str(error).split())) or "without a reason"
        reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason).replace("NoneType", "null")
        raise ConfigError(f"{path} is refused by transformers: {reason}") from None
    return given
