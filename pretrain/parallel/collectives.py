"""Differentiable collectives of tensor parallelism.

Sources: Shoeybi et al., arXiv 1909.08053; Korthikanti et al., arXiv 2205.05198.

Each pairs a forward collective with its adjoint in the backward pass. Sequence-parallel tensors are
split along dimension 1, the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smet.exchange import all_gather_flat, reduce_scatter_flat

SEQUENCE = 1
"""The dimension of ``(batch, sequence, features)`` that sequence parallelism splits."""


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


def _gather_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = x.new_empty(ranks, *x.shape)
    all_gather_flat(parts.view(-1), x.contiguous().view(-1), group=group)
    return torch.cat(list(parts), dim=SEQUENCE)


def _scatter_sum_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over ranks, of which each keeps its chunk of the sequence."""
    parts = torch.stack(x.chunk(dist.get_world_size(group), dim=SEQUENCE))
    own = torch.empty_like(parts[0])
    reduce_scatter_flat(own.view(-1), parts.view(-1), group=group)
    return own


class _Copy(torch.autograd.Function):
    """Identity; its gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grads[0], ctx.group), None


class _Reduce(torch.autograd.Function):
    """Sum over ranks; its gradient passes through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _GatherSequence(torch.autograd.Function):
    """Whole sequence from chunks; its gradient is summed over ranks and split again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather_sequence(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scatter_sum_sequence(grads[0], ctx.group), None


class _ScatterSumSequence(torch.autograd.Function):
    """Sum over ranks, each keeping its chunk of the sequence; its gradient is gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scatter_sum_sequence(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather_sequence(grads[0], ctx.group), None


def enter(x: Tensor, group: dist.ProcessGroup, sequence: bool) -> Tensor:
    """From the replicated (or sequence-split) stream into column-parallel layers: ``(b, s, h)`` whole."""
    return (_GatherSequence if sequence else _Copy).apply(x, group)


def leave(x: Tensor, group: dist.ProcessGroup, sequence: bool) -> Tensor:
    """From a row-parallel layer's partial sums ``(b, s, h)`` back to the stream."""
    return (_ScatterSumSequence if sequence else _Reduce).apply(x, group)


class _VocabularyCrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits whose vocabulary is split over ranks; nobody holds all of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> Tensor:
        logits = logits.float()
        rows = logits.shape[-1]
        first = dist.get_rank(group) * rows
        peak = logits.amax(-1)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        exponentials = (logits - peak.unsqueeze(-1)).exp_()
        mine = (targets >= first) & (targets < first + rows)
        local = torch.where(mine, targets - first, 0)
        wanted = torch.where(mine, logits.gather(-1, local.unsqueeze(-1)).squeeze(-1) - peak, 0.0)
        sums = torch.stack([exponentials.sum(-1), wanted])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exponentials.div_(sums[0].unsqueeze(-1)), local, mine)
        return sums[0].log() - sums[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        grad = probabilities * grads[0].unsqueeze(-1)
        grad.scatter_add_(-1, local.unsqueeze(-1), -(grads[0] * mine).unsqueeze(-1))
        return grad, None, None


def vocabulary_cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> Tensor:
    """-log p(target) per token in fp32.

    Args:
        logits: this rank's rows of the vocabulary, ``(..., vocabulary / ranks)``.
        targets: global token ids ``(...)``; ids outside the vocabulary give a loss without meaning.
    """
    losses: Tensor = _VocabularyCrossEntropy.apply(logits, targets, group)
    return losses


def gather_vocabulary(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Whole rows of logits ``(b, v)`` from this rank's columns ``(b, v / ranks)``. Without a gradient. Collective."""
    ranks = dist.get_world_size(group)
    parts = logits.new_empty(ranks, *logits.shape)
    all_gather_flat(parts.view(-1), logits.contiguous().view(-1), group=group)
    return torch.cat(list(parts), dim=1)
