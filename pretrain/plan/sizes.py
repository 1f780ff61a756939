"""Which weights a rank holds: shapes and stored lengths of every block of the model, and the stage cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from pretrain.config import RunConfig
from pretrain.models import inventory as models
from pretrain.models import inventory_of
from pretrain.models.inventory import Kind, Role
from smet.spec import LayerSpec, layer_specs


@dataclass(frozen=True, kw_only=True)
class PlannedWeight:
    """One parameter of one tensor-parallel rank."""

    name: str
    total: int
    """Elements of the dense matrix."""
    stored: int
    """Elements that are stored. Shards of random masks differ a little; this is the mean over shards."""
    group: str
    """Optimizer group, as ``smet.parameter_groups`` names it."""
    role: Role
    mask_bytes: int = 0
    closed_bytes: int = 0
    """Of what says which stored tiles are closed, where density falls."""
    aged: bool = False

    @property
    def sparse(self) -> bool:
        """Whether a ``SparseLinear`` holds it."""
        return self.group.startswith("sparse")


@dataclass(frozen=True)
class Block:
    """What one tensor-parallel rank has of a block of the model."""

    name: str
    weights: tuple[PlannedWeight, ...]
    whole: models.Block
    """The block itself; that of a tied head has no weights."""

    @property
    def kind(self) -> Kind:
        """What it does: embedding, decoder layer, final norm or head."""
        return self.whole.kind

    @property
    def is_layer(self) -> bool:
        """Whether this is a decoder layer."""
        return self.kind is Kind.LAYER

    def count(self, role: Role) -> int:
        """Number of its weights of one role."""
        return sum(weight.role is role for weight in self.weights)

    def elements(self, stored: bool = True) -> int:
        """Elements of all its weights, stored ones only or all."""
        return sum(weight.stored if stored else weight.total for weight in self.weights)


def blocks_of(config: RunConfig) -> list[Block]:
    """The blocks of one tensor-parallel rank, in order; a tied head has no weight of its own here."""
    return list(_blocks(_Case(f"{config.model} {config.sparsity} {config.parallel.tensor}", config)))


@dataclass(frozen=True)
class _Case:
    """Settings, equal where what decides about blocks is equal: a search asks for the same ones again and again."""

    key: str
    config: RunConfig = field(compare=False)


@lru_cache(maxsize=32)
def _blocks(case: _Case) -> tuple[Block, ...]:
    config = case.config
    inventory, tensor = inventory_of(config.model), config.parallel.tensor
    specs = layer_specs(dict(inventory.linears()), config.sparsity, inventory.transposed, tensor)
    return tuple(
        Block(block.name, tuple(_weight(weight, specs.get(weight.module), tensor) for weight in block.weights), block)
        for block in inventory.blocks
    )


def _weight(weight: models.Weight, spec: LayerSpec | None, tensor: int) -> PlannedWeight:
    """One shard of ``weight``; ``spec``: what its layer is stored as, where that is a ``SparseLinear``."""
    name = weight.name.removesuffix(".weight")
    total = weight.numel // (1 if weight.role.cut is None else tensor)
    if not weight.role.linear or spec is None:
        group = "vectors" if len(weight.shape) == 1 else "dense"
        return PlannedWeight(name=name, total=total, stored=total, group=group, role=weight.role)
    return PlannedWeight(
        name=name, total=total, stored=spec.stored, group=spec.group, mask_bytes=spec.mask_bytes, aged=spec.aged,
        closed_bytes=spec.closed_bytes, role=weight.role,
    )  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One rank of a layout, as all figures of a plan ask for it."""

    config: RunConfig
    blocks: Sequence[Block]
    """Those of its pipeline stage."""
    data_ranks: int
    """Data-parallel ranks, which share its optimizer state."""
    micro_batches: int
    """Of one optimizer step."""
    pipeline_stage: int = 0
    dense: bool = False
    """As if every weight were stored, in ordinary layers."""

    @property
    def zero_stage(self) -> int:
        """Stage of ZeRO."""
        return self.config.parallel.zero_stage

    @cached_property
    def weights(self) -> list[PlannedWeight]:
        """Of all its blocks, in order."""
        return [weight for block in self.blocks for weight in block.weights]

    @cached_property
    def sparse(self) -> list[PlannedWeight]:
        """Those that a ``SparseLinear`` holds."""
        return [] if self.dense else [weight for weight in self.weights if weight.sparse]

    @cached_property
    def aged(self) -> list[PlannedWeight]:
        """Those whose topology changes."""
        return [weight for weight in self.sparse if weight.aged]

    def stored(self, weight: PlannedWeight) -> int:
        """Elements of ``weight`` that it stores."""
        return weight.total if self.dense else weight.stored


def stage_blocks(config: RunConfig, blocks: Sequence[Block], bounds: Sequence[int], stage: int) -> list[Block]:
    """The blocks of one stage. A tied head in another stage than the embedding holds a copy of it."""
    own = list(blocks[bounds[stage] : bounds[stage + 1]])
    if inventory_of(config.model).shape.tied and own[-1].kind is Kind.HEAD and own[0].kind is not Kind.EMBEDDING:
        own[-1] = Block(own[-1].name, blocks[0].weights, own[-1].whole)
    return own
