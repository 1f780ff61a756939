"""Which weights a model has, said once: names, whole shapes and roles. No torch, no process.

A family lists its weights in the order in which it computes (``pretrain.models.family``). The builder, the planner,
the checks of layouts, checkpoints, dry runs, tools and callbacks derive from this list what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from math import prod
from typing import Any

from pretrain.models.answers import answer
from smet.errors import ConfigError, nearest


class Role(Enum):
    """What a weight is for; it decides how tensor-parallel ranks share it, and what it starts from."""

    EMBEDDING = "embedding"
    """Rows of the vocabulary, looked up. Cut by rows."""
    COLUMN = "column"
    """A product ``x W^T`` whose outputs are cut over the ranks: rows of W ``(out, in)``."""
    ROW = "row"
    """A product whose inputs are cut: columns of W. What the ranks compute is summed. Stored transposed."""
    HEAD = "head"
    """The product that gives the logits. Cut like ``COLUMN``."""
    SCALE = "scale"
    """The factors of a norm, behind which the stream enters column-parallel layers. Starts at 1; every rank has it."""
    SHIFT = "shift"
    """What is added to the whole stream: bias of a norm or of a ``ROW`` layer. Starts at 0; every rank has it."""
    COLUMN_SHIFT = "column shift"
    """Bias of a ``COLUMN`` layer. Starts at 0; cut like its outputs."""

    @property
    def cut(self) -> int | None:
        """The dimension that tensor-parallel ranks share; None = each of them holds all."""
        return {Role.ROW: 1, Role.SCALE: None, Role.SHIFT: None}.get(self, 0)

    @property
    def linear(self) -> bool:
        """Whether tokens are multiplied with it."""
        return self in (Role.COLUMN, Role.ROW, Role.HEAD)

    @property
    def start(self) -> float | None:
        """Its first value; None = drawn from a normal distribution."""
        return {Role.SCALE: 1.0, Role.SHIFT: 0.0, Role.COLUMN_SHIFT: 0.0}.get(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One parameter of the whole model, as the family's own module names it."""

    name: str
    shape: tuple[int, ...]
    role: Role
    block: str
    """Name of the block that it belongs to: what a pipeline may not cut."""
    deviation: float | None = None
    """Standard deviation that it starts with; None = the ``Shape``'s."""

    @property
    def module(self) -> str:
        """Name of the layer that owns it."""
        return self.name.rpartition(".")[0]

    @property
    def numel(self) -> int:
        """Elements of the whole weight."""
        return prod(self.shape)


class Kind(Enum):
    """What a block does."""

    EMBEDDING = "embedding"
    LAYER = "layer"
    NORM = "norm"
    HEAD = "head"


@dataclass(frozen=True)
class Block:
    """One block of the model, a function of one tensor; a tied head has no weights of its own."""

    name: str
    kind: Kind
    weights: tuple[Weight, ...]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that every family has, by one name; cheap, however large the model would be."""

    layers: int
    width: int
    """Features of the stream."""
    vocabulary: int
    longest: int
    """Longest sequence that the model is meant for, in tokens."""
    deviation: float
    """Standard deviation of the initial weights that name none of their own."""
    mixed: int
    """Features of all query heads of a layer together: attention's scores cost as many products per pair of tokens."""
    tied: bool = False
    """Whether the head uses the embedding's weight."""
    head: str
    """Name of the head's block."""
    shared: Mapping[str, int]
    """What tensor-parallel ranks share evenly: key of the ``model`` section to size."""
    keys: Mapping[str, str]
    """What the ``model`` section calls ``layers``, ``vocabulary`` and ``longest``."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where activations lie: what decides about their bytes beside the model."""

    width: int
    """Bytes of one number of the stream: 2 or 4."""
    tensor: int
    """Tensor-parallel ranks."""
    sequence: bool
    """Whether these share the stream between the layers."""
    documents: bool
    """Whether attention stays within documents."""
    permuted: bool = False
    """Whether layers keep a copy of what they read, with its features permuted."""


@dataclass(frozen=True)
class Inventory:
    """The weights and sizes of one model; made by ``pretrain.models.inventory_of``."""

    model: Any
    """The ``model`` section."""
    shape: Shape
    _list: Callable[[Any], Iterable[Weight]] = field(repr=False)
    _saved: Callable[[Any, Block, Place], float] = field(repr=False)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight, in the order in which the model computes; a tied head has none."""
        return answer(f"model.family '{self.model.family}': weights()", lambda: tuple(self._list(self.model)))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Embedding, decoder layers, final norm and head, in order."""
        found: dict[str, list[Weight]] = {}
        for weight in self.weights:
            found.setdefault(weight.block, []).append(weight)
        found.setdefault(self.shape.head, [])
        return tuple(Block(name, self._kind(name, own), tuple(own)) for name, own in found.items())

    def _kind(self, name: str, weights: list[Weight]) -> Kind:
        roles = {weight.role for weight in weights}
        if name == self.shape.head:
            return Kind.HEAD
        if Role.EMBEDDING in roles:
            return Kind.EMBEDDING
        return Kind.LAYER if any(role.linear for role in roles) else Kind.NORM

    @cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {weight.name: weight for weight in self.weights}

    def weight(self, name: str) -> Weight:
        """The weight of which the parameter ``name`` is stored: all of it, or active values (``layer.values``).

        Raises:
            ConfigError: the family lists none of that name.
        """
        layer, _, last = name.rpartition(".")
        found = self._by_name.get(f"{layer}.weight" if last == "values" else name)
        if found is None:
            raise ConfigError(
                f"the model has a parameter {name}, which the inventory of model.family '{self.model.family}' does not"
                f" list{nearest(name, self._by_name)}"
            )
        return found

    def role(self, name: str) -> Role:
        """Role of the parameter ``name``; see ``weight``."""
        return self.weight(name).role

    def deviation(self, name: str) -> float:
        """Standard deviation that the parameter ``name`` starts with, where it is drawn."""
        own = self.weight(name).deviation
        return self.shape.deviation if own is None else own

    def linears(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(module name, (outputs, inputs)) of every linear layer, a tied head among them."""
        for weight in self.weights:
            if weight.role.linear:
                yield weight.module, (weight.shape[0], weight.shape[1])
        if self.shape.tied:
            yield self.shape.head, (self.shape.vocabulary, self.shape.width)

    @cached_property
    def transposed(self) -> frozenset[str]:
        """Linear layers whose canonical matrix is ``(in, out)``, so that a shard is a range of it."""
        return frozenset(weight.module for weight in self.weights if weight.role is Role.ROW)

    def saved(self, block: Block, place: Place) -> float:
        """Bytes per token that autograd keeps of a decoder layer or the final norm."""
        what = f"model.family '{self.model.family}': saved()"
        return answer(what, lambda: self._saved(self.model, block, place))
