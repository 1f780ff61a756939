"""Tensor parallelism of the LLaMA blocks.

Column-parallel layers (q, k, v, gate, up, head) own rows of their weight, row-parallel ones (o, down)
columns, the embedding rows of the vocabulary. The stream is whole between blocks, or split along
the sequence with sequence parallelism. Collectives stand at three places only: behind each norm, behind
each row-parallel layer, and in the embedding and the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.layout import Layout
from pretrain.model.llama import IGNORED, Parts
from pretrain.parallel.collectives import enter, leave, vocabulary_cross_entropy

ROW_PARALLEL = ("o_proj", "down_proj")
"""Last parts of the names of row-parallel layers."""


class VocabularyEmbedding(nn.Embedding):
    """The rows of the embedding that this rank owns; other tokens come out as 0 and are summed in."""

    def __init__(self, vocabulary: int, hidden: int, *, layout: Layout, sequence: bool):
        super().__init__(vocabulary // layout.tensor_size, hidden)
        self.layout, self.sequence = layout, sequence

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``(b, s)`` to ``(b, s, h)``, or this rank's chunk of it under sequence parallelism."""
        local = tokens - self.layout.tensor_rank * self.num_embeddings
        mine = (local >= 0) & (local < self.num_embeddings)
        partial_sum = F.embedding(torch.where(mine, local, 0), self.weight) * mine.unsqueeze(-1)
        return leave(partial_sum, self.layout.tensor_group, self.sequence)


def parts(layout: Layout, sequence: bool) -> Parts:
    """The layers of one tensor-parallel rank. With tensor size 1 these are the dense model's own."""
    size = layout.tensor_size
    if size == 1:
        return Parts()
    return Parts(
        column=lambda inputs, outputs: nn.Linear(inputs, outputs // size, bias=False),
        row=lambda inputs, outputs: nn.Linear(inputs // size, outputs, bias=False),
        embedding=partial(VocabularyEmbedding, layout=layout, sequence=sequence),
        head=lambda inputs, outputs: nn.Linear(inputs, outputs // size, bias=False),
        cross_entropy=partial(_cross_entropy, group=layout.tensor_group),
    )


def _cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> Tensor:
    losses = vocabulary_cross_entropy(logits, targets, group)
    return (losses * (targets != IGNORED)).sum() / targets.numel()


def is_row_parallel(name: str) -> bool:
    """Whether the module or parameter ``name`` belongs to a layer that is split over its inputs."""
    return any(part in ROW_PARALLEL for part in name.split("."))


def is_replicated(name: str) -> bool:
    """Whether every tensor-parallel rank holds all of this parameter (norms)."""
    return "norm" in name


def shard(name: str, whole: Tensor, layout: Layout) -> Tensor:
    """This rank's part of the whole parameter ``name`` (as ``nn.Linear`` stores it)."""
    if layout.tensor_size == 1 or is_replicated(name):
        return whole
    return whole.chunk(layout.tensor_size, dim=1 if is_row_parallel(name) else 0)[layout.tensor_rank]


def whole_shape(name: str, shape: Sequence[int], layout: Layout) -> list[int]:
    """Shape of the whole parameter of which this rank's shard has ``shape``."""
    whole = list(shape)
    if layout.tensor_size > 1 and not is_replicated(name):
        whole[1 if is_row_parallel(name) else 0] *= layout.tensor_size
    return whole


def connect(model: nn.Module, layout: Layout, sequence: bool) -> None:
    """Put the collectives into a (sparse) model made of ``parts``, and mark its split parameters.

    Call it once, after the layers have been made sparse and before an engine wraps the model.
    """
    if layout.tensor_size == 1:
        return
    group = layout.tensor_group
    for name, module in model.named_modules():
        if isinstance(module, nn.RMSNorm):
            module.register_forward_hook(_passing(enter, group, sequence))
            if sequence:
                module.weight.register_hook(partial(_summed, group=group))
        elif name.rpartition(".")[2] in ROW_PARALLEL:
            module.register_forward_hook(_passing(leave, group, sequence))
    for name, parameter in model.named_parameters():
        if not is_replicated(name):
            # DeepSpeed counts unmarked parameters once in the gradient norm, marked ones on every rank.
            parameter.model_parallel = True  # type: ignore[attr-defined]


def _passing(action: Any, group: Any, sequence: bool) -> Any:
    return lambda module, inputs, output: action(output, group, sequence)


def _summed(grad: Tensor, group: dist.ProcessGroup) -> Tensor:
    """A norm sees only its chunk of the sequence, so its gradient is a partial sum."""
    total = grad.clone()
    dist.all_reduce(total, group=group)
    return total


def offsets(model: nn.Module, layout: Layout) -> dict[str, tuple[int, int]]:
    """(start of this rank's shard, length of the whole) of each logical vector that is split. Collective.

    Sparse shards differ in their number of active weights, so lengths are exchanged.
    """
    if layout.tensor_size == 1:
        return {}
    own = dict(_lengths(model))
    everyone: list[Any] = [None] * layout.tensor_size
    dist.all_gather_object(everyone, own, group=layout.tensor_control)
    return {
        name: (sum(other[name] for other in everyone[: layout.tensor_rank]), sum(other[name] for other in everyone))
        for name in own
    }


def _lengths(model: nn.Module) -> Iterator[tuple[str, int]]:
    from smet.linear import sparse_layers

    for name, parameter in model.named_parameters():
        if not is_replicated(name):
            yield name, getattr(parameter, "ds_numel", parameter.numel())
    for name, layer in sparse_layers(model).items():
        if not layer.is_full:
            yield f"{name}.mask", layer.grid.mask_bytes
