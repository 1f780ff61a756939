"""``sparsify``: turn the linear layers of any torch model into sparse ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from smet.config import SmetConfig
from smet.distribution import layer_densities
from smet.errors import ConfigError
from smet.linear import SparseLinear, sparse_layers
from smet.mask import BlockGrid, count_active, pack
from smet.seeds import generator
from smet.topology import block_scores, largest, random_active

DenseSource = Callable[[str, nn.Linear], Tensor]
MaskSource = Callable[[str, BlockGrid, int], Tensor | None]
"""(layer, blocks of its shard, active blocks of the whole layer) to the shard's packed mask; None = draw one."""


@dataclass(frozen=True)
class Piece:
    """Which piece of a whole model a process builds. The default is all of it.

    Its modules go by their names in the whole model, and masks are drawn for whole layers, so that
    every layout starts from the same model.
    """

    shard: int = 0
    shards: int = 1
    """Tensor parallelism: this is part ``shard`` of ``shards`` of every selected layer's canonical rows."""
    densities: Mapping[str, float] | None = None
    """Density of every selected layer of the whole model; None = work it out here."""
    masks: MaskSource | None = None
    """Masks of a model that is about to be loaded: its layers get these, and zeros as values."""


WHOLE = Piece()


def selects(name: str, config: SmetConfig) -> bool:
    """Whether ``config.include`` and ``config.exclude`` make the linear layer ``name`` sparse."""
    included = any(fnmatchcase(name, pattern) for pattern in config.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in config.exclude)


def selected_layers(model: nn.Module, config: SmetConfig) -> dict[str, nn.Linear]:
    """The ``nn.Linear`` modules that the name filters select, by name.

    Subclasses are left alone: their owners may read ``weight`` (as torch's attention does) or rely on more.
    """
    return {
        name: module for name, module in model.named_modules() if type(module) is nn.Linear and selects(name, config)
    }


def active_blocks(blocks: int, density: float) -> int:
    """Number of active blocks of a layer: the nearest to ``density`` of them, and at least one."""
    return max(1, min(blocks, round(blocks * density)))


def sparsify(
    model: nn.Module,
    config: SmetConfig,
    initial: str = "random",
    dense_source: DenseSource | None = None,
    piece: Piece = WHOLE,
) -> nn.Module:
    """Replace the selected ``nn.Linear`` layers of ``model`` by ``SparseLinear``, in place.

    Masks are exact (not Bernoulli draws) and a pure function of (seed, layer name), so every rank
    builds the same model. With ``fan_in_init`` the kept weights are scaled by density**-0.5
    (effective fan-in, arXiv 2405.15743).

    Args:
        model: any torch or transformers model.
        config: densities, filters and method.
        initial: ``random`` masks, or ``magnitude`` (keep the largest weights, unscaled).
        dense_source: gives a layer's dense ``(out, in)`` weight; default is the layer's own.
        piece: for parallel layouts; a piece may hold no layer to make sparse.

    Returns:
        ``model``.

    Raises:
        ConfigError: invalid settings, no layer selected, a block that does not divide a layer, or a weight
            that a selected layer shares with another module.
    """
    config.check()
    if isinstance(model, nn.Linear):
        raise ConfigError(
            "the model is itself a linear layer and cannot be replaced in place; wrap it in nn.Sequential"
        )
    if initial == "magnitude" and piece.shards > 1:
        raise ConfigError("initial='magnitude' compares the weights of whole layers; sparsify before cutting the model")
    layers = selected_layers(model, config)
    if not layers and piece.densities is None:
        raise ConfigError(
            f"sparsity.include {list(config.include)} minus exclude {list(config.exclude)} selects no linear layer; "
            "loosen the patterns"
        )
    densities = piece.densities
    if densities is None:
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        densities = layer_densities(shapes, config.density, config.distribution)
    _check_layers(model, layers, config, piece)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    for name, layer in layers.items():
        sparse = _empty_copy(name, layer, densities[name], config, piece)
        if sparse is None:
            weight = dense_source(name, layer) if dense_source else layer.weight.detach()
            sparse = _sparse_copy(name, layer, weight, densities[name], config, initial, piece)
        for place in places[layer]:
            parent, _, child = place.rpartition(".")
            setattr(model.get_submodule(parent), child, sparse)
    return model


def _check_layers(model: nn.Module, layers: dict[str, nn.Linear], config: SmetConfig, piece: Piece) -> None:
    problems = []
    owners: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    for name, layer in layers.items():
        if others := [other for other in owners[layer.weight] if other != name]:
            problems.append(f"{name} shares its weight with {others[0]}, which stays dense; add it to sparsity.exclude")
        rows, cols = _canonical_shape(layer, is_transposed(name, config))
        try:
            grid = BlockGrid(rows, cols, config.block)
            if piece.shards > 1 and grid.blocks % 8:
                raise ConfigError(
                    f"a tensor-parallel shard has {grid.blocks} blocks, expected a multiple of 8 (whole mask bytes); "
                    "use fewer tensor-parallel ranks or another block"
                )
        except ConfigError as error:
            problems += [f"{name}: {text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)


def is_transposed(name: str, config: SmetConfig) -> bool:
    """Whether the canonical matrix of layer ``name`` is ``(in, out)``."""
    return any(fnmatchcase(name, pattern) for pattern in config.row_parallel)


def _canonical_shape(layer: nn.Linear, transposed: bool) -> tuple[int, int]:
    shape = (layer.out_features, layer.in_features)
    return (shape[1], shape[0]) if transposed else shape


def _sparse_copy(
    name: str, layer: nn.Linear, weight: Tensor, density: float, config: SmetConfig, initial: str, piece: Piece
) -> SparseLinear:
    transposed = is_transposed(name, config)
    grid = BlockGrid(*_canonical_shape(layer, transposed), config.block)
    tiles = grid.to_blocks(weight.t() if transposed else weight)
    blocks = grid.blocks * piece.shards
    active = active_blocks(blocks, density)
    if initial == "magnitude":
        chosen = largest(block_scores(tiles.reshape(-1).float(), grid.block_size), active)
    else:
        chosen = random_active(blocks, active, generator(config.seed, "mask", name)).to(weight.device)
    mask = chosen[piece.shard * grid.blocks : (piece.shard + 1) * grid.blocks]
    bits, values = pack(mask), tiles[mask].reshape(-1)
    if config.fan_in_init and initial == "random":
        values = values * density**-0.5
    return _like(layer, bits, values.clone(), density, transposed, config)


def _empty_copy(name: str, layer: nn.Linear, density: float, config: SmetConfig, piece: Piece) -> SparseLinear | None:
    """A layer around a mask that ``piece`` brings; None where it brings none."""
    if piece.masks is None:
        return None
    transposed = is_transposed(name, config)
    grid = BlockGrid(*_canonical_shape(layer, transposed), config.block)
    bits = piece.masks(name, grid, active_blocks(grid.blocks * piece.shards, density))
    if bits is None:
        return None
    values = torch.zeros(count_active(bits) * grid.block_size)
    return _like(layer, bits, values, density, transposed, config)


def _like(
    layer: nn.Linear, bits: Tensor, values: Tensor, density: float, transposed: bool, config: SmetConfig
) -> SparseLinear:
    bias = None if layer.bias is None else layer.bias.detach()
    sparse = SparseLinear(layer.in_features, layer.out_features, bits, values, config.block, transposed, bias)
    sparse.values.requires_grad_(layer.weight.requires_grad)
    if sparse.bias is not None:
        sparse.bias.requires_grad_(layer.bias.requires_grad)
    sparse.configured_density = density
    sparse.keep_dense = config.weight_residency == "dense"
    return sparse


def parameter_groups(model: nn.Module, config: SmetConfig, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups for ``SmetAdamW``.

    Sparse values form one group per configured density, with ``lr_factor = density**-lr_exponent``,
    whose names start with ``sparse``.
    Dense matrices form one group; vectors (norms, biases) another without weight decay.
    Frozen parameters are left out.
    """
    sparse: dict[float, list[nn.Parameter]] = {}
    owned = set()
    for layer in sparse_layers(model).values():
        owned.add(id(layer.values))
        if layer.values.requires_grad:
            sparse.setdefault(layer.configured_density, []).append(layer.values)
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
    groups: list[dict[str, Any]] = [
        {"name": "dense", "params": [p for p in rest if p.dim() > 1], "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    for density, params in sorted(sparse.items()):
        groups.append(
            {
                "name": f"sparse-{density:.4g}",
                "params": params,
                "weight_decay": weight_decay,
                "lr_factor": density**-config.lr_exponent,
                "aged": config.dynamic and density < 1.0,
            }
        )
    return [group for group in groups if group["params"]]


def densify(layer: SparseLinear) -> nn.Linear:
    """An ``nn.Linear`` with the same function; inactive weights are exact zeros."""
    weight = layer.dense_weight().contiguous()
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device=weight.device)
    linear.weight = nn.Parameter(weight.clone())
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().clone())
    return linear.to(torch.float32 if weight.dtype == torch.float32 else weight.dtype)
