"""Small models for the checkpoint tools' tests: trained by real runs, and made by transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from pretrain.config import config_from_dict
from pretrain.layout import Layout
from pretrain.models.llama.model import LlamaForCausalLM
from pretrain.parallel.part import Builder
from smet.linear import sparse_layers
from tests.pretrain.runs import settings

VOCABULARY = 97


def jobs(corpus: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs of 6 steps with a topology update after step 4, saved after steps 3 and 6."""
    common = {"train__stop_at": 6, "checkpoint__interval": 3, "parallel__zero_stage": 2}
    mha = {"model__num_key_value_heads": 3}
    even = {"model__num_attention_heads": 4, "model__num_key_value_heads": 2, "model__vocab_size": VOCABULARY + 1}
    varied: dict[str, dict[str, Any]] = {
        "grouped": {},
        "tied": {**mha, "model__tie_word_embeddings": True, "model__rope_theta": 500.0, "sparsity__block": [1, 4]},
        "blocks": {
            **mha,
            "model__head_dim": 10,
            "sparsity__block": [2, 3],
            "sparsity__distribution": "erk",
            "sparsity__prune_start": 0.2,
        },
        "partly": {**mha, "sparsity__exclude": ["*embed*", "*lm_head*", "*0.self_attn.o_proj"]},
        "dense": {**mha, "sparsity": {"method": "dense"}},
        "adamw_8bit": {"optimizer__name": "adamw_8bit", "optimizer__beta2": 0.95},
        "lion": {"optimizer__name": "lion"},
        "tensor": {**even, "parallel__tensor": 2, "sparsity__exclude": ["*embed*", "*lm_head*", "*0.mlp.down_proj"]},
        "tensor-tied": {**even, "parallel__tensor": 2, "model__tie_word_embeddings": True, "sparsity__block": [1, 2]},
        "permuted": {
            **even, "parallel__tensor": 2, "sparsity__block": [3, 2], "sparsity__prune_start": 0.2,
            "sparsity__permute": "both", "sparsity__topology_ranges": 2,
        },
        "pipeline": {**even, "parallel__pipeline": 2, "parallel__zero_stage": 1, "model__tie_word_embeddings": True},
    }  # fmt: skip
    made = {}
    for name, changes in varied.items():
        whole = changes.pop("sparsity", None)
        made[name] = settings(corpus, folder / name, **{**common, **changes})
        if whole:
            made[name]["sparsity"] = whole
    return made


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("step-*"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json``."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return state


def read_vectors(checkpoint: Path) -> dict[str, Tensor]:
    """Every vector of a checkpoint, by torch's own reader."""
    reader = dcp.FileSystemReader(checkpoint)
    entries: dict[str, Any] = reader.read_metadata().state_dict_metadata
    vectors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(vectors, storage_reader=reader, no_dist=True)
    return vectors


def our_model(checkpoint: Path) -> LlamaForCausalLM:
    """Our own model with the weights and masks of a checkpoint."""
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    model = Builder(config_from_dict(read_state(checkpoint)["config"]), alone).whole()
    vectors = read_vectors(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(vectors[name].view_as(parameter))
        for name, layer in sparse_layers(model).items():
            if layer.mask is not None:
                layer.mask.copy_(vectors[f"{name}.mask"])
    return model


def make_hf(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A random LLaMA of transformers with grouped queries, saved in ``folder``; returns the model."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    options = {key: changes.pop(key) for key in ("max_shard_size",) if key in changes}
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes})).to(dtype)
    model.save_pretrained(folder, **options)
    return model


def load_hf(folder: Path) -> Any:
    """A model as transformers loads it, in the dtype of its files."""
    import transformers

    model, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()
