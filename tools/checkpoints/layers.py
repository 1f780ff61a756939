"""Where each weight of a LLaMA lies in a checkpoint: Hugging Face's names, shapes, and our vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pretrain.config.schema import ModelConfig
from pretrain.model import LlamaForCausalLM
from smet import SmetConfig
from smet.candidates import shape_of
from smet.convert import selected_layers
from smet.distribution import active_blocks, layer_densities
from smet.mask import BlockGrid
from smet.patterns import is_transposed


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What the vectors of a ``SparseLinear`` mean."""

    name: str
    """Module name, such as ``model.layers.0.mlp.up_proj``."""
    grid: BlockGrid
    transposed: bool
    active: int
    """Blocks that the settings make active; exact, not an expectation."""
    density: float
    """The density that was asked for."""
    selected: bool
    """Whether the settings make it sparse; row-parallel layers that they leave dense are stored as full ones."""

    @property
    def mask(self) -> str:
        """Name of the packed mask's vector; a full layer has none."""
        return f"{self.name}.mask"

    @property
    def is_full(self) -> bool:
        """Whether every block is active."""
        return self.active == self.grid.blocks


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight of the dense model."""

    name: str
    """Name in Hugging Face's files; a tied head has no name of its own."""
    shape: tuple[int, ...]
    vector: str
    """Name of the vector that holds it: all of it, or its active values."""
    layer: LayerSpec | None
    """None = the vector is the weight itself, row by row."""

    @property
    def numel(self) -> int:
        """Elements of the dense weight."""
        return torch.Size(self.shape).numel()

    @property
    def stored(self) -> int:
        """Elements of the vector."""
        return self.numel if self.layer is None else self.layer.active * self.layer.grid.block_size

    @property
    def mask_bytes(self) -> int:
        """Bytes of the mask's vector; 0 where there is none."""
        return 0 if self.layer is None or self.layer.is_full else self.layer.grid.mask_bytes

    @property
    def is_sparse(self) -> bool:
        """Whether it belongs to the layers that the settings make sparse, at whatever density."""
        return self.layer is not None and self.layer.selected


def weights_of(model: ModelConfig, sparsity: SmetConfig) -> list[Weight]:
    """Every weight of the model, in the order in which it computes.

    Raises:
        ConfigError: the block does not divide a layer.
    """
    with torch.device("meta"):
        llama = LlamaForCausalLM(model)
    layers = selected_layers(llama, sparsity)
    shapes = {name: shape_of(layer) for name, layer in layers.items()}
    densities = layer_densities(shapes, sparsity.density, sparsity.distribution)
    found = []
    for name, parameter in llama.named_parameters():
        layer = name.removesuffix(".weight")
        spec = None
        if layer in layers:
            spec = _spec(layer, shapes[layer], densities[layer], sparsity)
        elif isinstance(llama.get_submodule(layer), nn.Linear) and is_transposed(layer, sparsity):
            spec = _full_spec(layer, tuple(parameter.shape))
        vector = name if spec is None else f"{layer}.values"
        found.append(Weight(name=name, shape=tuple(parameter.shape), vector=vector, layer=spec))
    return found


def _spec(layer: str, shape: tuple[int, int], density: float, sparsity: SmetConfig) -> LayerSpec:
    transposed = is_transposed(layer, sparsity)
    rows, cols = (shape[1], shape[0]) if transposed else shape
    grid = BlockGrid(rows, cols, sparsity.block)
    active = active_blocks(grid.blocks, density)
    return LayerSpec(name=layer, grid=grid, transposed=transposed, active=active, density=density, selected=True)


def _full_spec(layer: str, shape: tuple[int, ...]) -> LayerSpec:
    grid = BlockGrid(shape[1], shape[0])
    return LayerSpec(name=layer, grid=grid, transposed=True, active=grid.blocks, density=1.0, selected=False)
