"""LLaMA (Touvron et al., arXiv 2302.13971; grouped queries: Ainslie et al., arXiv 2305.13245).

    h = E[tokens]
    h = h + Attention(RMSNorm(h));   h = h + SwiGLU(RMSNorm(h))       for every decoder layer
    logits = W RMSNorm(h)

Module names and the rotary convention are those of Hugging Face's ``LlamaForCausalLM``, so weights are
interchangeable. A block maps one tensor to one tensor, so that a pipeline can cut between any two;
``Parts`` names the layers that tensor parallelism replaces. Nothing here knows of ranks: a block
takes the number of its heads from what its projections return. Documents that share a sample see each
other, unless an end-of-document token is given: then a bias on the attention's scores keeps them apart. With a cache,
tokens follow those that it has seen (``pretrain.models.cache``).

Shapes: b sequences, s tokens, h hidden, q query heads, k key and value heads, d head_dim, i inner, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.checkpoint import checkpoint

from pretrain.data.boundaries import document_bias, document_numbers
from pretrain.models.cache import Cache, Kept
from pretrain.models.functions import RMSNorm, attention, rotate, swiglu
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.parts import DENSE, Parts, split_sample
from smet.kernels.watched import looked_on


def rotary_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position * theta**(-2j / d) in fp32, (s, d): feature j and j + d/2 turn together.

    They are no buffers on purpose: an engine that casts a module to bf16 would round the angles too. Who traces gets
    formulas, and not what was kept.
    """
    return (_tables if is_dynamo_compiling() or looked_on() else _kept_tables)(length, head_dim, theta, device)


def _tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / theta**exponents).repeat(1, 2)
    return angles.cos(), angles.sin()


@lru_cache(maxsize=8)
def _kept_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _tables(length, head_dim, theta, device)


class Attention(nn.Module):
    """Causal self-attention; each key and value head serves q / k query heads."""

    def __init__(self, config: LlamaConfig, parts: Parts = DENSE):
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = parts.column(config.hidden_size, queries)
        self.k_proj = parts.column(config.hidden_size, keys)
        self.v_proj = parts.column(config.hidden_size, keys)
        self.o_proj = parts.row(queries, config.hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None = None, kept: Kept | None = None) -> Tensor:
        """(b, s, h) -> (b, s, h); bias: (b, 1, s, s), causality included, or None for plain causal attention; kept:
        keys and values of the tokens before."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, q or k, s, d)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = self._angles(query, kept)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if kept is not None:
            key, value = kept.extend(key, value)  # (b, k, all tokens so far, d)
        mixed = attention(query, key, value, bias)  # (b, q, s, d)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _angles(self, query: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        first, length = (0, query.shape[2]) if kept is None else (kept.length, kept.room)
        cos, sin = rotary_tables(length, self.head_dim, self.theta, query.device)
        here = slice(first, first + query.shape[2])
        return cos[here], sin[here]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, parts: Parts = DENSE):
        super().__init__()
        self.gate_proj = parts.column(config.hidden_size, config.intermediate_size)
        self.up_proj = parts.column(config.hidden_size, config.intermediate_size)
        self.down_proj = parts.row(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(b, s, h) -> (b, s, h), by way of (b, s, i)"""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on the normed residual stream and added to it."""

    def __init__(self, config: LlamaConfig, parts: Parts = DENSE):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, parts)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config, parts)

    def forward(self, x: Tensor, bias: Tensor | None = None, kept: Kept | None = None) -> Tensor:
        """(b, s, h) -> (b, s, h); bias, kept: those of ``Attention``"""
        x = x + self.self_attn(self.input_layernorm(x), bias, kept)
        return x + self.mlp(self.post_attention_layernorm(x))


class RecomputedLayer(DecoderLayer):
    """A decoder layer that keeps only its input for the backward pass, and computes the rest again."""

    def forward(self, x: Tensor, bias: Tensor | None = None, kept: Kept | None = None) -> Tensor:
        """(b, s, h) -> (b, s, h); bias, kept: those of ``Attention``"""
        if not torch.is_grad_enabled():
            return super().forward(x, bias, kept)
        return checkpoint(super().forward, x, bias, use_reentrant=False)


def blocks(
    config: LlamaConfig, parts: Parts = DENSE, recompute: bool = False
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Name and maker of every block, in order: embedding, decoder layers, final norm, head.

    The composition of the blocks is the model. A pipeline stage makes only its own, under the same names.
    """
    layer = RecomputedLayer if recompute else DecoderLayer
    return [
        ("model.embed_tokens", partial(parts.embedding, config.vocab_size, config.hidden_size)),
        *((f"model.layers.{n}", partial(layer, config, parts)) for n in range(config.num_hidden_layers)),
        ("model.norm", partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)),
        ("lm_head", partial(parts.head, config.hidden_size, config.vocab_size)),
    ]


class LlamaModel(nn.Module):
    """Everything but the head."""

    def __init__(self, embed_tokens: nn.Module, layers: list[nn.Module], norm: nn.Module, eos_id: int | None = None):
        super().__init__()
        self.eos_id = eos_id
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids (b, s) -> (b, s, h); with a cache, those of one document."""
        x = self.embed_tokens(tokens)  # (b, s, h)
        bias = None
        if self.eos_id is not None and cache is None:
            bias = document_bias(document_numbers(tokens, self.eos_id), x.dtype)
        for number, layer in enumerate(self.layers):
            x = layer(x, bias, None if cache is None else cache[number])
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """The whole model in one process. Its weights are arbitrary until ``initialize`` or a load fills them.

    With ``eos_id``, the end-of-document token, attention stays within each document of a sample
    (``pretrain.data.boundaries``).
    """

    def __init__(
        self,
        config: LlamaConfig,
        parts: Parts = DENSE,
        *,
        activation_checkpointing: bool = False,
        eos_id: int | None = None,
    ):
        super().__init__()
        self.config, self.parts = config, parts
        embedding, *layers, norm, head = (make() for _, make in blocks(config, parts, activation_checkpointing))
        self.model = LlamaModel(embedding, layers, norm, eos_id)
        self.lm_head = head  # after the model: a tied weight goes by the name of the embedding
        if config.tie_word_embeddings:
            self.lm_head.weight = embedding.weight

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids (b, s) -> logits (b, s, v) of the token that follows each."""
        return self.lm_head(self.model(tokens, cache))

    def loss(self, tokens: Tensor) -> Tensor:
        """Samples (b, s + 1) -> mean cross-entropy over the s predicted tokens, in fp32 nats."""
        inputs, targets = split_sample(tokens)
        return self.parts.cross_entropy(self(inputs), targets)


Model = LlamaForCausalLM
