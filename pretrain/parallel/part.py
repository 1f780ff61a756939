"""This rank's part of the sparse model, from the run's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.config import RunConfig
from pretrain.config.names import in_run_file
from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.models import family_of, inventory_of
from pretrain.models.init import initial_weight
from pretrain.parallel import tensor
from smet import sparsify
from smet.convert import MaskSource, Piece
from smet.criteria import mask_needs
from smet.initial import first_mask
from smet.mask import TileGrid, count_active, pack
from smet.notices import end_notices, layer_notices
from smet.patterns import selects
from smet.permutation import orders_of, unfit
from smet.say import note
from smet.spec import first_and_final
from smet.starved import unbalanced

if TYPE_CHECKING:
    from pretrain.checkpoint.masks import SavedMasks


class Builder:
    """Builds this rank's part of the sparse model, in fp32 on the CPU.

    Initial weights and masks are a pure function of seed and names, whatever the layout. A layer is
    dense only while its active weights are picked, so no rank ever holds the dense model.

    Args:
        config: the run's settings.
        layout: this rank's place.
        saved: masks of the checkpoint that is about to be loaded; sparse layers get these, and no values yet.
        first: packed masks of whole layers that were chosen before (``pretrain.first_masks``).
    """

    def __init__(
        self,
        config: RunConfig,
        layout: Layout,
        saved: SavedMasks | None = None,
        first: Mapping[str, Tensor] | None = None,
    ):
        self.config, self.layout, self.saved, self.first = config, layout, saved, first
        self.parts = tensor.parts(layout, config.parallel.sequence)
        self.recompute = config.train.activation_checkpointing
        self.eos_id = config.data.eos_id if config.data.reset_attention else None
        self.family, self.inventory = family_of(config.model), inventory_of(config.model)
        shapes = {name: shape for name, shape in self.inventory.linears() if selects(name, config.sparsity)}
        if not shapes:
            raise ConfigError(
                f"sparsity.include {list(config.sparsity.include)} minus exclude {list(config.sparsity.exclude)} "
                "selects no linear layer; loosen the patterns"
            )
        sparsity = config.sparsity
        self.densities, self.finals = first_and_final(shapes, sparsity)
        turned = {name: (i, o) if name in self.inventory.transposed else (o, i) for name, (o, i) in shapes.items()}
        wrong = unfit(turned, sparsity, layout.tensor_size) or unbalanced(turned, self.densities, sparsity)
        if wrong:
            raise ConfigError([in_run_file(text) for text in wrong])
        size = sparsity.block[0] * sparsity.block[1]
        found = layer_notices({name: o * i // size for name, (o, i) in shapes.items()}, self.densities, sparsity)
        grids = {name: (rows // sparsity.block[0], cols // sparsity.block[1]) for name, (rows, cols) in turned.items()}
        for notice in [*found, *end_notices(grids, self.finals, sparsity, layout.tensor_size)]:
            note(in_run_file(notice))

    def whole(self) -> nn.Module:
        """All layers of this tensor-parallel rank, connected to the other ranks."""
        with torch.device("meta"):
            model = self.family.model.Model(
                self.config.model, self.parts, activation_checkpointing=self.recompute, eos_id=self.eos_id
            )
        self._require_listed(model)
        self._fill(model)
        tensor.connect(model, self.inventory, self.layout, self.config.parallel.sequence)
        return model

    def makers(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """Name and maker of every block of the model, in order."""
        made = self.family.model.blocks(self.config.model, self.parts, self.recompute)
        names, listed = [name for name, _ in made], [block.name for block in self.inventory.blocks]
        if names != listed:
            raise ConfigError(
                f"the blocks of model.family '{self.config.model.family}' are {', '.join(names)}, its inventory lists"
                f" {', '.join(listed)}; expected the same, in order"
            )
        return made

    def block(self, name: str, maker: Callable[[], nn.Module]) -> nn.Module:
        """One block under its name in the whole model, connected to the other tensor-parallel ranks."""
        with torch.device("meta"):
            root = nest({name: maker()})
        self._require_listed(root)
        self._fill(root)
        tensor.connect(root, self.inventory, self.layout, self.config.parallel.sequence)
        return root.get_submodule(name)

    def _require_listed(self, model: nn.Module) -> None:
        """Refuse a model that is not its family's inventory, from which all else is derived."""
        for name, parameter in model.named_parameters():
            listed = self.inventory.weight(name)
            tensor.require_role(name, model.get_submodule(listed.module), listed.role)
            shape = tensor.whole_shape(listed.role, parameter.shape, self.layout)
            if tuple(shape) != listed.shape:
                raise ConfigError(
                    f"{name} has the shape {shape}, the inventory of model.family '{self.config.model.family}' lists"
                    f" {list(listed.shape)}"
                )

    def _fill(self, model: nn.Module) -> None:
        """Make the selected layers sparse, and give every parameter that is still on meta its values."""
        masks: MaskSource | None = None if self.saved is None else self._saved_mask
        if masks is None and mask_needs(self.config.sparsity):
            masks = self._first_mask
        piece = replace(self._piece(self.densities, masks), finals=self.finals)
        sparsify(model, self.config.sparsity, dense_source=self._dense, piece=piece, quiet=True)
        self._store_transposed(model)
        made: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
        for prefix, module in model.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:
                    if parameter not in made:
                        made[parameter] = nn.Parameter(self._initial(f"{prefix}.{name}".removeprefix("."), parameter))
                    setattr(module, name, made[parameter])

    def _store_transposed(self, model: nn.Module) -> None:
        """Row-parallel layers that stay dense are stored as full ``SparseLinear``s, in canonical order.

        So their shards too are contiguous ranges of one logical vector, and any layout reads any other's.
        """
        full = self._piece({name: 1.0 for name, _ in model.named_modules()})
        names = tuple(name for name, _ in model.named_modules() if name in self.inventory.transposed)
        dense = replace(
            self.config.sparsity, include=names, exclude=(), block=(1, 1), mask_init="random", balance="never"
        )
        sparsify(model, dense, dense_source=self._dense, piece=full, quiet=True)

    def _piece(self, densities: Mapping[str, float], masks: MaskSource | None = None) -> Piece:
        place = self.layout
        return Piece(place.tensor_rank, place.tensor_size, densities, self.inventory.transposed, masks,
                     empty=self.saved is not None)  # fmt: skip

    def _saved_mask(self, name: str, grid: TileGrid, active: int) -> Tensor | None:
        assert self.saved is not None
        return self.saved.shard(name, grid, self.layout.tensor_rank, self.layout.tensor_size, active)

    def _first_mask(self, name: str, grid: TileGrid, active: int) -> Tensor:
        """This shard of a mask that goes by the weights of the whole layer."""
        shards, rank = self.layout.tensor_size, self.layout.tensor_rank
        if self.first is not None:
            own = self.first[name].view(shards, -1)
            _require_shared_out(name, [count_active(bits) for bits in own], self.config)
            return own[rank]
        shape, transposed = (grid.rows * shards, grid.cols), name in self.inventory.transposed
        natural = shape[::-1] if transposed else shape
        orders = orders_of(name, natural, transposed, self.config.sparsity)
        weight = orders.stored(self._whole(f"{name}.weight", natural))
        whole = TileGrid(*shape, grid.tile)
        tiles = whole.to_tiles(weight.t() if transposed else weight)
        chosen = first_mask(name, whole.shape, active, self.config.sparsity, {"weights": tiles})
        _require_shared_out(name, [int(part.sum()) for part in chosen.chunk(shards)], self.config)
        return pack(chosen[rank * grid.tiles : (rank + 1) * grid.tiles])

    def _dense(self, name: str, layer: nn.Module) -> Tensor:
        assert isinstance(layer, nn.Linear)
        return self._initial(f"{name}.weight", layer.weight)

    def _initial(self, name: str, like: Tensor) -> Tensor:
        role = self.inventory.role(name)
        shape = tensor.whole_shape(role, like.shape, self.layout)
        return tensor.shard(role, self._whole(name, shape), self.layout).contiguous()

    def _whole(self, name: str, shape: Sequence[int]) -> Tensor:
        role, deviation = self.inventory.role(name), self.inventory.deviation(name)
        return initial_weight(name, role, shape, seed=self.config.train.seed, std=deviation)


def _require_shared_out(name: str, counts: Sequence[int], config: RunConfig) -> None:
    """Refuse a mask that leaves a tensor-parallel rank nothing of a layer: engines take no empty parameters."""
    if 0 in counts:
        raise ConfigError(
            f"sparsity.mask_init '{config.sparsity.mask_init}' leaves {counts.count(0)} of {len(counts)}"
            f" tensor-parallel ranks no active tile of {name}; use fewer of them, or another mask"
        )


def nest(modules: dict[str, nn.Module]) -> nn.Module:
    """A module that holds ``modules`` under their dotted names, such as ``model.layers.3``."""
    root = nn.Module()
    for name, module in modules.items():
        parent = root
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, module)
    return root
