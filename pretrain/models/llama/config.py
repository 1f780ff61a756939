"""The ``model`` section of a run that trains a LLaMA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.models.family import FamilyConfig
from pretrain.rules import above, below, no_choice


@dataclass(kw_only=True)
class LlamaConfig(FamilyConfig):
    """Shape of a LLaMA model, with the key names of Hugging Face's ``LlamaConfig``."""

    family: str = "llama"
    vocab_size: int
    """Number of token ids the embedding and the head know."""
    hidden_size: int
    """Features of the residual stream."""
    intermediate_size: int
    """Features inside the feed-forward block."""
    num_hidden_layers: int
    """Number of decoder layers."""
    num_attention_heads: int
    """Number of query heads."""
    num_key_value_heads: int = 0
    """Number of key and value heads (fewer than query heads: grouped queries); 0 = as many as query heads."""
    head_dim: int = 0
    """Features of one head; 0 = hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    """Longest sequence the model is meant for, in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square before the root."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights (sparse layers scale it by their density)."""
    initializer: Literal["fixed", "scaled"] = "fixed"
    """``fixed``: every weight starts with ``initializer_range``; ``scaled``: matrices with 1 / sqrt(inputs), those that
    add to the stream with that over sqrt(2 layers), an embedding of its own with 1, a tied one with 1 / sqrt(features).
    """
    tie_word_embeddings: bool = False
    """Whether the head uses the embedding's weights."""
    hidden_act: Literal["silu"] = "silu"
    """Activation of the gate; LLaMA's is ``silu``, the only one built."""
    attention_bias: bool = False
    """Bias in the attention's projections; LLaMA has none, so only ``false``."""
    mlp_bias: bool = False
    """Bias in the feed-forward's projections; LLaMA has none, so only ``false``."""

    def __post_init__(self) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // max(1, self.num_attention_heads)

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        found = below("model", self, 1, (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"))
        found += above("model", self, 1 << 16, ("num_hidden_layers",))
        found += above("model", self, 1 << 24, (*sizes[1:3], "num_attention_heads", "num_key_value_heads", "head_dim"))
        found += above("model", self, (1 << 31) - 1, ("vocab_size", "max_position_embeddings"))
        found += no_choice("model", self)
        for name in ("rms_norm_eps", "rope_theta", "initializer_range"):
            if not getattr(self, name) > 0:
                found.append(f"model.{name} is {getattr(self, name)}, expected a positive number")
        if self.initializer_range > 1:
            found.append(
                f"model.initializer_range is {self.initializer_range}, expected at most 1, as transformers does"
            )
        for name in ("attention_bias", "mlp_bias"):
            if getattr(self, name):
                found.append(f"model.{name} is true, expected false: LLaMA's projections have no bias")
        return found or self._head_problems()

    def _head_problems(self) -> list[str]:
        hidden, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        found = []
        # With a head_dim of its own it could be computed, but transformers refuses it: no export would ever load.
        if hidden % heads:
            near = [n for n in (hidden // heads * heads, (hidden // heads + 1) * heads) if n]
            found.append(
                f"model.hidden_size is {hidden} with {heads} heads, expected a multiple of num_attention_heads"
                f" ({' or '.join(map(str, near))}), as transformers' LlamaForCausalLM does"
            )
        elif self.head_dim % 2:
            found.append(f"model.head_dim is {self.head_dim}, expected an even size: rotary embedding pairs features")
        if heads % kv_heads:
            fitting = ", ".join(str(k) for k in range(1, heads + 1) if heads % k == 0)
            found.append(
                f"model.num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads"
                f" {heads} ({fitting})"
            )
        return found
