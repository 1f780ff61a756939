"""What the families share: the layers that tensor parallelism replaces, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.functions import IGNORED, MeanCrossEntropy


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in fp32 over the number of targets, ignored ones included: with filler rows
    the losses of batches of one size still add up. logits: (b, s, v); targets: (b, s) -> scalar."""
    if torch.compiler.is_compiling():  # which fuses the formula itself
        rows, wanted = logits.flatten(0, -2).float(), targets.flatten()
        return F.cross_entropy(rows, wanted, ignore_index=IGNORED, reduction="sum") / wanted.numel()
    loss: Tensor = MeanCrossEntropy.apply(logits, targets)
    return loss


def split_sample(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (b, s + 1) to what the model reads and what it predicts, both (b, s)."""
    return tokens[:, :-1].clamp(min=0), tokens[:, 1:]


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """``nn.Linear``, without a bias unless it is asked for."""
    return nn.Linear(inputs, outputs, bias=bias)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The layers a model is made of that tensor parallelism replaces.

    Each takes (inputs, outputs), the sizes of the whole layer, and ``bias``.
    """

    column: Callable[..., nn.Module] = linear
    """Role ``COLUMN``: a tensor-parallel one returns only its rank's share of the outputs."""
    row: Callable[..., nn.Module] = linear
    """Role ``ROW``: a tensor-parallel one takes only its rank's share of the inputs."""
    embedding: Callable[[int, int], nn.Module] = nn.Embedding
    """Takes (vocabulary, width)."""
    head: Callable[[int, int], nn.Module] = linear
    """Logits; a tensor-parallel one may return only its rank's share of the vocabulary ..."""
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = mean_cross_entropy
    """... which this then has to understand. (logits, targets) -> mean loss."""


DENSE = Parts()
