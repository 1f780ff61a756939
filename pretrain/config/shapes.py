"""Shapes of a LLaMA's linear layers, from its settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config.schema import ModelConfig


def linear_shapes(model: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Yield (module name, outputs, inputs) of every linear layer, decoder layers first."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    parts = (
        ("self_attn.q_proj", queries, hidden),
        ("self_attn.k_proj", keys, hidden),
        ("self_attn.v_proj", keys, hidden),
        ("self_attn.o_proj", hidden, queries),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    )
    for layer in range(model.num_hidden_layers):
        for name, outputs, inputs in parts:
            yield f"model.layers.{layer}.{name}", outputs, inputs
    yield "lm_head", model.vocab_size, hidden
