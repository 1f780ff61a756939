"""``sparsify``: turn the linear layers of any torch or transformers model into sparse ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smet.candidates import Survey, is_stored_transposed, parameter_of, shape_of, survey, weight_of
from smet.compute import backend
from smet.config import SmetConfig
from smet.criteria import MASKS, mask_needs
from smet.distribution import active_tiles, density_factor, effective_density
from smet.errors import ConfigError
from smet.experts import DenseExpert, SparseExpert, unstacked
from smet.initial import DenseWeight, Loss, dense_masks, first_mask, needs_dense_model
from smet.linear import SparseLinear, let_fall, sparse_layers
from smet.mask import TileGrid, count_active, pack, unpack
from smet.named import problem
from smet.notices import end_notices, idle_notices, layer_notices
from smet.permutation import Orders, orders_of, unfit
from smet.report import SparsifyReport, grouped, named
from smet.say import say
from smet.settings import remember, told
from smet.spec import first_and_final
from smet.starved import empty, starved, unbalanced

DenseSource = Callable[[str, nn.Module], Tensor]
MaskSource = Callable[[str, TileGrid, int], Tensor | None]
"""(layer, tiles of its shard, active tiles of the whole layer) to the shard's packed mask; None = draw one."""


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
    """Density at first of every selected layer of the whole model; None = work it out here."""
    transposed: Collection[str] = ()
    """Names of layers whose canonical matrix is ``(in, out)``: those that tensor parallelism splits over their inputs,
    so that a shard is a range of rows."""
    masks: MaskSource | None = None
    """Masks that are known already."""
    empty: bool = True
    """Whether ``masks`` are those of a model that is about to be loaded: its layers get zeros as values."""
    finals: Mapping[str, float] | None = None
    """Density in the end of those whose density falls; looked at where ``densities`` are given."""


WHOLE = Piece()


def sparsify(
    model: nn.Module | SparsifyReport,
    config: SmetConfig | None = None,
    initial: str | None = None,
    dense_source: DenseSource | None = None,
    piece: Piece = WHOLE,
    quiet: bool = False,
    loss: Loss | None = None,
    **settings: Any,
) -> SparsifyReport:
    """Replace the selected linear layers of ``model`` by ``SparseLinear``, in place.

    Linear layers are ``nn.Linear`` and transformers' ``Conv1D``; hooks, bias, dtype, device, ``requires_grad`` and
    the training flag are carried over. Experts of transformers' become one layer each (``smet.experts``). What else
    has matrix weights stays dense, and the report says why. A second call makes sparse what its patterns add, and
    leaves sparse layers alone.

    Masks are exact (not Bernoulli draws) and a pure function of (seed, layer name), so every rank
    builds the same model. With ``fan_in_init`` the kept weights are scaled by density**-0.5
    (effective fan-in, arXiv 2405.15743), unless they were chosen by what they are (``mask_init``).

    Args:
        model: any torch or transformers model, before it is wrapped (DDP, FSDP, DeepSpeed) or has an optimizer.
        config: densities, filters and method. The model remembers them, for ``AdamW`` and ``attach``.
        initial: ``mask_init`` under its older name: ``magnitude`` keeps the largest weights.
        dense_source: gives a layer's dense ``(out, in)`` weight; default is the layer's own.
        piece: for parallel layouts; a piece may hold no layer to make sparse.
        quiet: do not print the report.
        loss: the model to a scalar, where ``mask_init`` asks the dense model: see docs/criteria.md.
        settings: those of ``SmetConfig`` by name, in the place of ``config``.

    Returns:
        The report; the model is its ``.model``.

    Raises:
        ConfigError: invalid settings, no layer left to select, a tile that does not divide a layer, or a model that
            is wrapped, has no values yet, or is no module.
    """
    config = _with_masks(told(config, settings), initial, piece).check()
    if isinstance(model, SparsifyReport):
        model = model.model
    _check_model(model)
    backend(config.compute)
    found = survey(model, config)
    layers = found.layers
    densities, finals = piece.densities, piece.finals or {}
    if densities is None:
        _require_layers(found, config)
        shapes = {name: shape_of(layer) for name, layer in layers.items()}
        densities, finals = first_and_final(shapes, config)
    _check_layers(found, densities, config, piece, dense_source)
    with unstacked(model, found.stacks):
        _swap(model, layers, densities, config, dense_source, loss, piece)
    let_fall(model, {name: finals[name] for name in layers if name in finals}, piece.shards)
    remember(model, config)
    report = _report(model, found, ({name: densities[name] for name in layers}, finals), config, piece)
    if not quiet:
        say(str(report), logging.WARNING if report.warnings else logging.INFO)
    return report


def _with_masks(config: SmetConfig, initial: str | None, piece: Piece) -> SmetConfig:
    """``config`` with the first masks that ``initial`` names, if these can be chosen for ``piece``."""
    if initial is not None:
        if (wrong := problem("initial", initial, MASKS)) is not None:
            raise ConfigError(wrong)
        config = replace(config, mask_init=initial)
    if piece.shards > 1 and piece.masks is None and not config.problems() and mask_needs(config):
        raise ConfigError(
            f"mask_init='{config.mask_init}' compares the weights of whole layers; sparsify before cutting the model"
        )
    return config


def _swap(
    model: nn.Module, layers: Mapping[str, nn.Module], densities: Mapping[str, float], config: SmetConfig,
    dense_source: DenseSource | None, loss: Loss | None, piece: Piece,
) -> None:  # fmt: skip
    """Put a sparse layer wherever ``model`` has one of ``layers``."""
    if needs_dense_model(config) and piece.masks is None:
        masks = _dense_masks(model, layers, densities, config, piece.transposed, loss, dense_source)
        piece = replace(piece, masks=masks, empty=False)
    places = _places(model)
    for name, layer in layers.items():
        sparse = _empty_copy(name, layer, densities[name], config, piece)
        if sparse is None:
            weight = dense_source(name, layer) if dense_source else weight_of(layer)
            sparse = _sparse_copy(name, layer, weight, densities[name], config, piece)
        for place in places[layer]:
            parent, _, child = place.rpartition(".")
            setattr(model.get_submodule(parent), child, sparse)


def _dense_masks(
    model: nn.Module, layers: Mapping[str, nn.Module], densities: Mapping[str, float], config: SmetConfig,
    transposed_ones: Collection[str], loss: Loss | None, source: DenseSource | None,
) -> MaskSource:  # fmt: skip
    if loss is None:
        raise ConfigError(
            f"mask_init='{config.mask_init}' asks the dense model; give sparsify loss=, a function of the model that"
            " gives a scalar"
        )
    if source is not None:
        raise ConfigError(
            f"mask_init='{config.mask_init}' asks the model's own weights, which a dense_source stands in for"
        )
    weights = {}
    for name, layer in layers.items():
        transposed, orders = name in transposed_ones, _orders(name, layer, config, WHOLE)
        grid = TileGrid(*_canonical_shape(layer, transposed), config.block)
        turned = is_stored_transposed(layer), transposed
        weights[name] = DenseWeight(
            parameter_of(layer),
            partial(_to_tiles, grid, orders, *turned),
            grid.shape,
            active_tiles(grid.tiles, densities[name]),
        )
    masks = dense_masks(model, weights, config, [loss])
    return lambda name, grid, active: pack(masks[name])


def _to_tiles(grid: TileGrid, orders: Orders, turned: bool, transposed: bool, parameter: Tensor) -> Tensor:
    """What is shaped like a layer's parameter, ``(in, out)`` if that is turned, as tiles of its canonical matrix."""
    weight = orders.stored(parameter.t() if turned else parameter)
    return grid.to_tiles(weight.t() if transposed else weight)


def _places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every name of every module: a shared one has several."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    return places


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"sparsify was given a {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, nn.Linear):
        raise ConfigError(
            "the model is itself a linear layer and cannot be replaced in place; wrap it in nn.Sequential"
        )
    wrapper = next((type(m).__name__ for m in model.modules() if type(m).__name__ in WRAPPERS), None)
    if wrapper is not None:
        raise ConfigError(
            f"the model is wrapped in {wrapper} already, which would go on with the dense weights; sparsify it before"
        )


WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine", "PipelineEngine", "DataParallel")
"""Classes that remember the parameters they were given."""


def _require_layers(found: Survey, config: SmetConfig) -> None:
    if found.layers:
        return
    reasons = "; ".join(grouped(found.left))
    left = f"; left dense: {reasons}" if reasons else ", and it has no matrix weights"
    if found.sparse:
        raise ConfigError(
            "the model is already sparse, and of its other layers none can become so" + (left if reasons else "")
        )
    raise ConfigError(
        f"include {list(config.include)} minus exclude {list(config.exclude)} selects no linear layer of this model;"
        f" loosen the patterns{left}"
    )


def _check_layers(
    found: Survey, densities: Mapping[str, float], config: SmetConfig, piece: Piece, source: DenseSource | None
) -> None:
    problems = []
    if piece.densities is not None:  # where the plan was made elsewhere, a layer that drops out of it is an error
        problems += [
            f"{one.name} {one.reason}, which stays dense; add it to exclude"
            for one in found.left
            if one.name in piece.densities and one.reason.startswith("shares its weight")
        ]
    if source is None and (unmade := [n for n, layer in found.layers.items() if layer.weight.is_meta]):
        problems.append(
            f"{named(unmade)} have no values yet (meta device), expected a model on a real device, or a dense_source"
        )
    shapes = {}
    for name, layer in found.layers.items():
        rows, cols = _canonical_shape(layer, name in piece.transposed)
        shapes[name] = rows * piece.shards, cols
        try:
            grid = TileGrid(rows, cols, config.block)
            if piece.shards > 1 and grid.tiles % 8:
                raise ConfigError(
                    f"a tensor-parallel shard has {grid.tiles} tiles, expected a multiple of 8 (whole mask bytes); "
                    "use fewer tensor-parallel ranks or another block"
                )
        except ConfigError as error:
            problems += [f"{name}: {text}" for text in error.problems]
    problems += unfit(shapes, config, piece.shards)
    if not problems and piece.masks is None:
        problems += unbalanced(shapes, densities, config)
    if problems:
        raise ConfigError(problems)


def _canonical_shape(layer: nn.Module, transposed: bool) -> tuple[int, int]:
    shape = shape_of(layer)
    return (shape[1], shape[0]) if transposed else shape


def _report(
    model: nn.Module, found: Survey, both: tuple[Mapping[str, float], ...], config: SmetConfig, piece: Piece
) -> SparsifyReport:
    (asked, finals), layers = both, sparse_layers(model)
    sizes = {name: layer.grid.rows * layer.grid.cols for name, layer in layers.items()}
    active = sum(layer.active * layer.grid.tile_size for layer in layers.values())
    sparse = sum(sizes.values())
    report = SparsifyReport(
        model, {name: layers[name] for name in asked if name in layers},
        sparse + sum(one.weights for one in found.left), sparse, active, found.left,
    )  # fmt: skip
    tiles = {name: layer.grid.tiles * piece.shards for name, layer in report.layers.items()}
    shapes = {name: (tiles[name] // layer.grid.shape[1], layer.grid.shape[1]) for name, layer in report.layers.items()}
    report.warnings += [*idle_notices(config), *layer_notices(tiles, asked, config)]
    report.warnings += end_notices(shapes, finals, config, piece.shards)
    if piece.shards == 1:
        report.warnings += starved(
            [{n: empty(la.packed_mask(), la.grid) for n, la in report.layers.items() if la.grid.tile_size > 1}]
        )
    if report.share < 0.5:
        report.warnings.append(
            f"only {report.share:.0%} of the model's matrix weights are in sparse layers: memory and time of the"
            " rest stay as they were"
        )
    return report


def _sparse_copy(
    name: str, layer: nn.Module, weight: Tensor, density: float, config: SmetConfig, piece: Piece
) -> SparseLinear:
    transposed, orders = name in piece.transposed, _orders(name, layer, config, piece)
    grid = TileGrid(*_canonical_shape(layer, transposed), config.block)
    weight = orders.stored(weight)
    tiles = grid.to_tiles(weight.t() if transposed else weight)
    count = grid.tiles * piece.shards
    active = active_tiles(count, density)
    density = effective_density(count, density)
    needed = mask_needs(config)
    known = piece.masks(name, grid, active) if piece.masks is not None else None
    if known is not None:
        mask = unpack(known, grid.tiles).to(weight.device)
    else:
        shape = (grid.shape[0] * piece.shards, grid.shape[1])
        chosen = first_mask(name, shape, active, config, {"weights": tiles} if "weights" in needed else {})
        mask = chosen.to(weight.device)[piece.shard * grid.tiles : (piece.shard + 1) * grid.tiles]
    bits, values = pack(mask), tiles[mask].reshape(-1)
    if config.fan_in_init and not needed:
        values = values * density_factor(density, 0.5)
    return _like(layer, bits, values.clone(), density, transposed, config, orders)


def _orders(name: str, layer: nn.Module, config: SmetConfig, piece: Piece) -> Orders:
    """In which the shard's features are stored."""
    transposed, (outputs, inputs) = name in piece.transposed, shape_of(layer)
    whole = (outputs, inputs * piece.shards) if transposed else (outputs * piece.shards, inputs)
    return orders_of(name, whole, transposed, config, piece.shard, piece.shards)


def _empty_copy(name: str, layer: nn.Module, density: float, config: SmetConfig, piece: Piece) -> SparseLinear | None:
    """A layer around a mask that ``piece`` brings; None where it brings none."""
    if piece.masks is None or not piece.empty:
        return None
    transposed = name in piece.transposed
    grid = TileGrid(*_canonical_shape(layer, transposed), config.block)
    tiles = grid.tiles * piece.shards
    bits = piece.masks(name, grid, active_tiles(tiles, density))
    if bits is None:
        return None
    values = torch.zeros(count_active(bits) * grid.tile_size)
    orders = _orders(name, layer, config, piece)
    return _like(layer, bits, values, effective_density(tiles, density), transposed, config, orders)


def _like(
    layer: nn.Module, bits: Tensor, values: Tensor, density: float, transposed: bool, config: SmetConfig, orders: Orders
) -> SparseLinear:
    outputs, inputs = shape_of(layer)
    kind = SparseExpert if isinstance(layer, DenseExpert) else SparseLinear
    sparse = kind(inputs, outputs, bits, values, config.block, transposed)
    bias = layer.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    sparse.bias = bias  # the very object: an optimizer may know it already
    carry_over(layer, sparse)
    own = vars(sparse).keys()
    vars(sparse).update({name: value for name, value in vars(layer).items() if name not in own})
    sparse.values.requires_grad_(bool(layer.weight.requires_grad))
    sparse.configured_density = density
    sparse.orders = orders
    sparse.compute = config.compute
    sparse.keep_dense = config.weight_residency == "dense"
    return sparse


_OF_ANY_MODULE = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give ``new``, which takes the place of ``old``, its hooks and training flag: the very objects, so that the
    handles by which hooks are removed stay right."""
    for name in _OF_ANY_MODULE & vars(old).keys():
        vars(new)[name] = vars(old)[name]


def densify(layer: SparseLinear) -> nn.Linear:
    """An ``nn.Linear`` with the same function, hooks and bias; inactive weights are exact zeros."""
    weight = layer.orders.natural(layer.dense_weight()).contiguous()
    kind = DenseExpert if isinstance(layer, SparseExpert) else nn.Linear
    linear = kind(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=layer.values.requires_grad)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    carry_over(layer, linear)
    return linear
