"""Pipeline parallelism: the same blocks, cut into stages for DeepSpeed's PipelineModule."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.data.boundaries import document_bias, document_numbers
from pretrain.layout import Layout
from pretrain.models.inventory import Kind
from pretrain.parallel.part import Builder, nest


class StageBlock(nn.Module):
    """One block of the model, on the rank whose stage it falls into; ``made`` are that stage's by name."""

    def __init__(self, made: Mapping[str, nn.Module], name: str, eos_id: int | None = None):
        super().__init__()
        self.block, self.eos_id = made[name], eos_id

    def forward(self, x: Tensor) -> Tensor:
        """As the block."""
        return self.block(x)


class PackedEmbedding(StageBlock):
    """The embedding of a model whose attention stays within documents: their numbers travel with the stream."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Token ids (b, s) to the stream and the documents' numbers, int32 (b, s)."""
        assert self.eos_id is not None
        return self.block(x), document_numbers(x, self.eos_id)


class PackedLayer(StageBlock):
    """A decoder layer of such a model."""

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Stream and documents to the next stream and the same documents."""
        stream, documents = x
        return self.block(stream, _bias(documents, stream.dtype)), documents


class PackedNorm(StageBlock):
    """The final norm of such a model: behind it nobody asks for documents."""

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Stream and documents to the normed stream."""
        return self.block(x[0])


@lru_cache(maxsize=1)
def _bias(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """One bias for all layers of a stage, which get the same tensor one after another (tensors are keyed by identity;
    the key keeps its tensor alive, so that no other can take its place)."""
    return document_bias(documents, dtype)


_PACKED = {Kind.EMBEDDING: PackedEmbedding, Kind.LAYER: PackedLayer, Kind.NORM: PackedNorm}


def stage_block(kind: Kind, packed: bool) -> type[StageBlock]:
    """What stands for a block in a pipeline; ``packed``: attention stays within documents."""
    return _PACKED.get(kind, StageBlock) if packed else StageBlock


def _own_blocks(stage: Any) -> Iterator[tuple[int, nn.Module]]:
    """(number in the whole model, module) of this stage's blocks; a tied head counts as the embedding."""
    for key, module in stage.named_children():
        if key.isdigit():
            yield int(key), module.block
    for module in stage.tied_modules.values():
        yield 0, module.block


def head_of(embedding: StageBlock, hidden: Tensor) -> Tensor:
    """The tied head: logits with the embedding's weight."""
    return nn.functional.linear(hidden, embedding.block.weight)  # type: ignore[arg-type]


def build_stages(builder: Builder, layout: Layout, bounds: Sequence[int]) -> tuple[Any, nn.Module]:
    """This rank's stage as a ``PipelineModule``, and its blocks under canonical names. Collective.

    Args:
        builder: builds one block by (name, maker), with initial weights and sparse layers.
        bounds: first block of each stage, and the number of blocks at the end.

    Raises:
        ConfigError: a block cannot be built on some rank; on every rank.
    """
    from deepspeed.pipe import LayerSpec, TiedLayerSpec
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    from smet.zero import pipeline_module

    named = builder.makers()
    kinds = [stage_block(block.kind, builder.eos_id is not None) for block in builder.inventory.blocks]
    own, tied = named[bounds[layout.stage] : bounds[layout.stage + 1]], builder.inventory.shape.tied
    if tied and own[-1] is named[-1]:
        own[-1] = named[0]
    # Before the stages meet in DeepSpeed: functions of a user's own choose first masks in there.
    made = layout.agree(lambda: {name: builder.block(name, maker) for name, maker in dict(own).items()})
    parts = [(kind, made, name, builder.eos_id) for kind, (name, _) in zip(kinds, named, strict=True)]
    specs: list[Any] = [LayerSpec(*part) for part in parts]
    if tied:
        weight = {"tied_weight_attr": ["block.weight"]}
        specs[0] = TiedLayerSpec("embedding", *parts[0], **weight)
        specs[-1] = TiedLayerSpec("embedding", *parts[0], forward_fn=head_of, **weight)
    topology = PipeModelDataParallelTopology(num_pp=layout.stages, num_mp=layout.tensor_size, num_dp=layout.dp_size)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its topology; ours is in the run's summary
        stage = pipeline_module(specs, bounds, topology=topology, loss_fn=builder.parts.cross_entropy)
    return stage, nest({named[number][0]: block for number, block in _own_blocks(stage)})
