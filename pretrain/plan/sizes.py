"""Which weights a rank holds: shapes and stored lengths of every block of the model, and the stage cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pretrain.config import RunConfig
from pretrain.config.checks import linear_shapes
from smet.distribution import active_blocks, effective_density, layer_densities
from smet.mask import packed_bytes
from smet.patterns import is_transposed, selects


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of one tensor-parallel rank."""

    name: str
    total: int
    """Elements of the dense matrix."""
    stored: int
    """Elements that are stored. Shards of random masks differ a little; this is the mean over shards."""
    group: str
    """Optimizer group, as ``smet.parameter_groups`` names it."""
    mask_bytes: int = 0
    aged: bool = False
    product: bool = False
    """Whether tokens are multiplied with it."""

    @property
    def sparse(self) -> bool:
        """Whether a ``SparseLinear`` holds it."""
        return self.group.startswith("sparse")


@dataclass(frozen=True)
class Block:
    """One block of the model: embedding, decoder layer, final norm or head."""

    name: str
    weights: tuple[Weight, ...]

    @property
    def is_layer(self) -> bool:
        """Whether this is a decoder layer."""
        return ".layers." in self.name

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
    model, tensor = config.model, config.parallel.tensor
    by_block: dict[str, list[Weight]] = {"lm_head": []}
    shapes = {name: (o, i) for name, o, i in linear_shapes(model) if selects(name, config.sparsity)}
    densities = layer_densities(shapes, config.sparsity.density, config.sparsity.distribution) if shapes else {}
    for name, outputs, inputs in linear_shapes(model):
        if name == "lm_head" and model.tie_word_embeddings:
            continue
        block = name if name == "lm_head" else ".".join(name.split(".")[:3])
        by_block.setdefault(block, []).append(_linear(config, name, outputs * inputs // tensor, densities.get(name)))
    norm = model.hidden_size
    for name, weights in by_block.items():
        if name != "lm_head":
            weights.insert(0, Weight(name=f"{name}.input_layernorm", total=norm, stored=norm, group="vectors"))
            weights.insert(5, Weight(name=f"{name}.post_attention_layernorm", total=norm, stored=norm, group="vectors"))
    rows = model.vocab_size * model.hidden_size // tensor
    embedding = Weight(name="model.embed_tokens", total=rows, stored=rows, group="dense")
    final_norm = Weight(name="model.norm", total=norm, stored=norm, group="vectors")
    return (
        Block("model.embed_tokens", (embedding,)),
        *(Block(name, tuple(weights)) for name, weights in by_block.items() if name != "lm_head"),
        Block("model.norm", (final_norm,)),
        Block("lm_head", tuple(by_block["lm_head"])),
    )


def _linear(config: RunConfig, name: str, elements: int, density: float | None) -> Weight:
    """The shard of one linear layer of ``elements`` elements; ``density`` None = not selected."""
    sparsity = config.sparsity
    if density is None and not is_transposed(name, sparsity):
        return Weight(name=name, total=elements, stored=elements, group="dense", product=True)
    if density is None:  # the builder stores these in canonical order, as full sparse layers
        return Weight(name=name, total=elements, stored=elements, group="sparse-1", product=True)
    size = sparsity.block[0] * sparsity.block[1]
    blocks, shards = elements // size, config.parallel.tensor
    active = active_blocks(blocks * shards, density)
    full = active == blocks * shards
    density = effective_density(blocks * shards, density)
    return Weight(
        name=name, total=elements, stored=round(active / shards) * size, group=f"sparse-{density:.4g}",
        mask_bytes=0 if full else packed_bytes(blocks), aged=sparsity.dynamic and density < 1.0, product=True,
    )  # fmt: skip


def stage_blocks(config: RunConfig, blocks: Sequence[Block], bounds: Sequence[int], stage: int) -> list[Block]:
    """The blocks of one stage. A tied head in another stage than the embedding holds a copy of it."""
    own = list(blocks[bounds[stage] : bounds[stage + 1]])
    if config.model.tie_word_embeddings and own[-1].name == "lm_head" and own[0].name != "model.embed_tokens":
        own[-1] = Block("lm_head", blocks[0].weights)
    return own
