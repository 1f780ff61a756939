"""Where each weight of a model lies in a checkpoint: its name, its shape, and our vectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pretrain.models import inventory_of
from pretrain.models.family import FamilyConfig
from smet import SmetConfig
from smet.permutation import NONE, Orders, orders_of
from smet.spec import LayerSpec, layer_specs


@dataclass(frozen=True, kw_only=True)
class SavedWeight:
    """One weight of the dense model."""

    name: str
    """Name in the model; a tied head has no name of its own."""
    shape: tuple[int, ...]
    vector: str
    """Name of the vector that holds it: all of it, or its active values."""
    layer: LayerSpec | None
    """None = the vector is the weight itself, row by row."""

    @property
    def numel(self) -> int:
        """Elements of the dense weight."""
        return prod(self.shape)

    @property
    def stored(self) -> int:
        """Elements of the vector."""
        return self.numel if self.layer is None else self.layer.stored

    @property
    def mask_bytes(self) -> int:
        """Bytes of the mask's vector; 0 where there is none."""
        return 0 if self.layer is None else self.layer.mask_bytes

    @property
    def has_mask(self) -> bool:
        """Whether some of its tiles are inactive, or a falling density will close some of those that are stored."""
        return self.layer is not None and (not self.layer.is_full or self.layer.final < self.layer.density)

    @property
    def is_sparse(self) -> bool:
        """Whether it belongs to the layers that the settings make sparse, at whatever density."""
        return self.layer is not None and self.layer.selected


def weights_of(model: FamilyConfig, sparsity: SmetConfig) -> list[SavedWeight]:
    """Every weight of the model, in the order in which it computes.

    Raises:
        ConfigError: the block does not divide a layer.
    """
    inventory = inventory_of(model)
    linears = dict(inventory.linears())
    if inventory.shape.tied:
        linears.pop(inventory.shape.head)
    specs = layer_specs(linears, sparsity, inventory.transposed)
    found = []
    for weight in inventory.weights:
        layer = specs.get(weight.module) if weight.role.linear else None
        vector = weight.name if layer is None else f"{layer.name}.values"
        found.append(SavedWeight(name=weight.name, shape=weight.shape, vector=vector, layer=layer))
    return found


def orders_in(spec: LayerSpec, sparsity: SmetConfig) -> Orders:
    """In which the features of a whole layer are stored."""
    if not spec.selected:
        return NONE
    rows, cols = spec.grid.rows, spec.grid.cols
    return orders_of(spec.name, (cols, rows) if spec.transposed else (rows, cols), spec.transposed, sparsity)
