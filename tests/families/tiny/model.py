"""A small transformer without positions.

    h = E[tokens]
    h = h + Mix(LayerNorm(h));   h = h + Think(LayerNorm(h))       for every layer
    logits = W LayerNorm(h)

Some layers think behind a gate, the others without. All products but the last have biases.
Shapes: b sequences, s tokens, f features, i inner, v words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.data.boundaries import document_bias, document_numbers
from pretrain.models.parts import DENSE, Parts, split_sample
from tests.families.tiny.config import TinyConfig


class Norm(nn.Module):
    """LayerNorm whose factors are called ``scale``."""

    def __init__(self, features: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """(b, s, f) -> (b, s, f)"""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift)


class Mix(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: TinyConfig, parts: Parts):
        super().__init__()
        self.head = config.features // config.heads
        self.ask, self.know, self.tell = (parts.column(config.features, config.features, bias=True) for _ in range(3))
        self.give = parts.row(config.features, config.features, bias=True)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(b, s, f) -> (b, s, f); bias: (b, 1, s, s), or None for plain causal attention"""
        ask, know, tell = (
            part(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.ask, self.know, self.tell)
        )
        mixed = F.scaled_dot_product_attention(ask, know, tell, attn_mask=bias, is_causal=bias is None)
        return self.give(mixed.transpose(1, 2).flatten(2))


class Think(nn.Module):
    """narrow(gelu(wide(x)))"""

    def __init__(self, config: TinyConfig, parts: Parts):
        super().__init__()
        self.wide = parts.column(config.features, config.inner, bias=True)
        self.narrow = parts.row(config.inner, config.features, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, s, f) -> (b, s, f)"""
        return self.narrow(F.gelu(self.wide(x)))


class GatedThink(nn.Module):
    """narrow(silu(gate(x)) * wide(x))"""

    def __init__(self, config: TinyConfig, parts: Parts):
        super().__init__()
        self.gate, self.wide = (parts.column(config.features, config.inner, bias=True) for _ in range(2))
        self.narrow = parts.row(config.inner, config.features, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, s, f) -> (b, s, f)"""
        return self.narrow(F.silu(self.gate(x)) * self.wide(x))


class Layer(nn.Module):
    """Attention and feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: TinyConfig, parts: Parts, number: int, recompute: bool):
        super().__init__()
        self.recompute = recompute
        self.before, self.mix = Norm(config.features), Mix(config, parts)
        self.between = Norm(config.features)
        self.think = (GatedThink if number in config.gated else Think)(config, parts)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(b, s, f) -> (b, s, f); bias: that of ``Mix``"""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._compute, x, bias, use_reentrant=False)
        return self._compute(x, bias)

    def _compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.mix(self.before(x), bias)
        return x + self.think(self.between(x))


def blocks(
    config: TinyConfig, parts: Parts = DENSE, recompute: bool = False
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Name and maker of every block, in order."""
    return [
        ("read", partial(parts.embedding, config.words, config.features)),
        *((f"stack.{n}", partial(Layer, config, parts, n, recompute)) for n in range(config.depth)),
        ("last", partial(Norm, config.features)),
        ("guess", partial(parts.head, config.features, config.words)),
    ]


class Model(nn.Module):
    """The whole model in one process."""

    def __init__(
        self, config: TinyConfig, parts: Parts = DENSE, *, activation_checkpointing: bool = False,
        eos_id: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.parts, self.eos_id = parts, eos_id
        read, *stack, last, guess = (make() for _, make in blocks(config, parts, activation_checkpointing))
        self.read, self.stack, self.last, self.guess = read, nn.ModuleList(stack), last, guess
        if config.tied:
            self.guess.weight = self.read.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (b, s) -> logits (b, s, v)"""
        x = self.read(tokens)
        bias = None if self.eos_id is None else document_bias(document_numbers(tokens, self.eos_id), x.dtype)
        for layer in self.stack:
            x = layer(x, bias)
        return self.guess(self.last(x))

    def loss(self, tokens: Tensor) -> Tensor:
        """Samples (b, s + 1) -> mean cross-entropy of the s predicted tokens."""
        inputs, targets = split_sample(tokens)
        return self.parts.cross_entropy(self(inputs), targets)
