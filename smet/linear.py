"""SparseLinear: a linear layer whose weight is stored as its active entries only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from smet import compute, copies, kernels, loading, products
from smet.distribution import effective_density
from smet.errors import ConfigError
from smet.kernels.watched import watched
from smet.mask import MaskPart, TileGrid, count_active, pack, unpack
from smet.permutation import NONE as UNPERMUTED
from smet.tickets import ticket_for
from smet.weight import readable_weight

CHECKPOINTED = "_checkpoint_wrapped_module."
"""What torch's ``checkpoint_wrapper`` puts into the names of the modules in it, and into no entry of a state dict."""


class SparseLinear(nn.Module):
    """``y = x W^T (+ bias)`` where W is dense only while the layer computes.

    The *canonical matrix* is W ``(out, in)``, with features in the order in which they are stored
    (``smet.permutation``), or its transpose for ``transposed`` layers (those that tensor parallelism splits
    over their inputs), so that a tensor-parallel shard is always a contiguous range of mask and values.

    Args:
        in_features: columns of W.
        out_features: its rows.
        bits: packed mask of the canonical matrix's tiles, uint8.
        values: initial active values, ``(active * tile_size,)``, tile by tile.
        block: tile size in the canonical matrix.
        transposed: whether the canonical matrix is ``(in, out)``.
        bias: initial bias ``(out,)``, or None.
    """

    values: nn.Parameter
    mask: Tensor | None
    final_density: float | None = None
    """What its density falls to; None = it stays. Storage keeps its first size."""
    closed: Tensor | None = None
    """Packed, a bit per stored tile: which are closed (``smet.gradual``). None where density does not fall."""
    closed_tiles = 0
    """How many of them are."""
    part: MaskPart | None = None
    """Of its mask, where a checkpoint of ZeRO-3 was loaded and no ``MaskBank`` has taken it yet."""
    orders = UNPERMUTED
    """In which its features are stored; what is called canonical and dense below is of stored features."""
    _version = loading.VERSION

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: Tensor,
        values: Tensor,
        block: tuple[int, int] = (1, 1),
        transposed: bool = False,
        bias: Tensor | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features, self.transposed = in_features, out_features, transposed
        rows, cols = (in_features, out_features) if transposed else (out_features, in_features)
        self.grid = TileGrid(rows, cols, block)
        self.values = nn.Parameter(values)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.active = values.numel() // self.grid.tile_size
        if not values.is_meta and count_active(bits) != self.active:
            raise ValueError(f"mask has {count_active(bits)} active tiles, values fill {self.active}")
        self.register_buffer("mask", None if self.is_full else bits)
        self.configured_density = self.density
        """What decides the learning-rate factor: see ``smet.distribution.effective_density``."""
        self.compute = "auto"
        """Who multiplies; see ``smet.compute``."""
        self.decided: compute.Decided | None = None
        """Who was measured to multiply fastest; see ``smet.measured``."""
        self.source: Any = None
        """Who serves the mask: None = this layer's own buffer, else a ``MaskBank``."""
        self.values_written = self.masks_written = 0
        """How often either was written where torch does not see it; part of the two versions."""
        self.keep_dense = False
        self._dense: Tensor | None = None
        self._dense_key: Any = None
        self.behind_product: Callable[[Tensor], Tensor] | None = None
        """What else happens to ``x W^T`` before the bias is added: a row-parallel layer sums it over its ranks."""
        self.gradient_sink: Callable[[SparseLinear, Tensor], None] | None = None
        """Who else wants the dense gradient (canonical) of every backward pass; see ``smet.growth``."""
        self.values_sink: Callable[[SparseLinear, Tensor], None] | None = None
        """Who else wants the gradient of the values, whoever computes it."""
        self.ticket = ticket_for(self)
        """What operators are given in its place."""

    @property
    def density(self) -> float:
        """Stored fraction of the tiles: the active ones, and those that a falling density has closed."""
        return self.active / self.grid.tiles

    @property
    def is_full(self) -> bool:
        """Whether every tile is stored; such a layer stores no mask."""
        return self.active == self.grid.tiles

    @property
    def last_density(self) -> float:
        """What the settings leave in the end; beside ``configured_density``, what they begin with."""
        last = self.configured_density if self.final_density is None else self.final_density
        return min(self.configured_density, last)

    @property
    def falls(self) -> bool:
        """Whether its density falls."""
        return self.last_density < self.configured_density

    @property
    def open_tiles(self) -> int:
        """Stored tiles that are trained: all, but for those that a falling density has closed."""
        return self.active - self.closed_tiles

    def close(self, closed: Tensor) -> None:
        """Say which of the stored tiles are closed: bool ``(active,)``. Their values are 0, and get no gradient."""
        self.closed, self.closed_tiles = pack(closed), int(closed.sum())

    def without_closed(self, gradient: Tensor) -> Tensor:
        """The gradient of the values, 0 in closed tiles."""
        if not self.closed_tiles or self.closed is None:
            return gradient
        closed = unpack(self.closed.to(gradient.device), self.active)
        return gradient.view(self.active, -1).masked_fill(closed.unsqueeze(1), 0).view(-1)

    @property
    def weight(self) -> Tensor:
        """Dense W ``(out, in)`` to read: what is computed from it trains the values. Made anew at each access."""
        return readable_weight(self)

    # torch.distributed.checkpoint asks a module for an attribute by the name of each entry of its state dict.

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self.grid.tile

    @property
    def inputs(self) -> Any:
        """The order of its input features; None = as they are."""
        return self.orders.inputs

    @property
    def outputs(self) -> Any:
        """The same of its outputs."""
        return self.orders.outputs

    @property
    def permutation(self) -> str:
        """Digest of both; empty where there is none."""
        return self.orders.digest()

    @property
    def described(self) -> SimpleNamespace:
        """Whom it asks for ``weight`` instead: see ``_fqn_modifiers``."""
        return SimpleNamespace(weight=None)

    def _fqn_modifiers(self) -> dict[str, str]:
        """torch's name for it. The entry ``weight`` says a shape: nobody has to make the dense matrix to name it."""
        return {loading.SHAPE: "described"}

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module``, but ``weight`` is computed and cannot be replaced."""
        if name == "weight":
            raise RuntimeError("the weight of a SparseLinear is computed from its values and cannot be replaced")
        super().register_parameter(name, param)

    def packed_mask(self) -> Tensor:
        """The whole packed mask of this layer, gathered from its owners if it is sharded."""
        if self.is_full:
            return pack(torch.ones(self.grid.tiles, dtype=torch.bool, device=self.values.device))
        if self.source is not None:
            return self.source.bits(self)
        if self.part is not None:
            raise ConfigError(
                "a layer holds this rank's part of a mask, as it was loaded; call smet.attach(engine, total_steps)"
                " before the model computes"
            )
        assert self.mask is not None
        return self.mask

    def canonical_weight(self, values: Tensor) -> Tensor:
        """Dense canonical matrix ``(rows, cols)`` of ``values``."""
        copies.require_whole(self)
        grid = self.grid
        if self.is_full:
            return grid.from_tiles(values)
        return kernels.expand(self.packed_mask(), values, grid)

    def dense_weight(self, values: Tensor | None = None) -> Tensor:
        """Dense W ``(out, in)`` as products take it, features as they are stored; inactive entries are exactly 0."""
        values = self.values.detach() if values is None else values
        keep = self.keep_dense and not (torch.is_grad_enabled() and values.requires_grad)  # a graph needs its own
        key = (values.dtype, values.device, self.values_version, self.topology_version) if keep else None
        if keep and self._dense is not None and key == self._dense_key:
            return self._dense
        if keep:
            self._dense = None  # before another is made beside it
        weight = self.canonical_weight(values)
        weight = weight.t() if self.transposed else weight
        if keep:
            self._dense, self._dense_key = weight, key
        return weight

    @property
    def values_version(self) -> tuple[int, int]:
        """Another one whenever the values are: what is kept about them is compared with this.

        Changes that torch sees count by themselves, also in plain torch loops; others are announced.
        """
        return _written(self.values), self.values_written

    @property
    def topology_version(self) -> tuple[int | None, int]:
        """The same of the mask."""
        return None if self.mask is None else _written(self.mask), self.masks_written

    def mask_changed(self) -> None:
        """Announce a mask that was written where this layer does not see it; to be called on all of its ranks."""
        self.masks_written += 1

    def values_changed(self) -> None:
        """Announce values that were written where torch does not see it, as engines do."""
        self.values_written += 1
        self._dense = None

    def compress_gradient(self, dense: Tensor) -> Tensor:
        """Active entries of a canonical gradient ``(rows, cols)``, as ``(active * tile_size,)``."""
        if self.gradient_sink is not None:
            self.gradient_sink(self, dense)
        grid = self.grid
        if self.is_full:
            return grid.to_tiles(dense).reshape(-1)
        return kernels.compress(dense, self.packed_mask(), grid, self.active)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` ``(..., in_features)``; returns ``(..., out_features)``."""
        values: Tensor = self.values
        by: Any = products
        if watched(x, values):  # kernels are no graph: tracing into them only breaks it
            from smet import operators

            by = operators
        inputs, outputs = self.orders
        x = x if inputs is None else by.read(inputs, x)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, values = x.to(dtype), values.to(dtype)
        y: Tensor = by.product(self, x, values)
        y = y if outputs is None else by.write(outputs, y)
        if self.behind_product is not None:
            y = self.behind_product(y)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "ticket"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.ticket = ticket_for(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        """A copy that is told apart from an average; see ``smet.copies``."""
        return copies.deep_copy(self, memo)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, *arguments: Any, **options: Any) -> None:
        copies.require_whole(self)
        super()._save_to_state_dict(destination, prefix, *arguments, **options)
        loading.add_mask(self, destination, prefix)
        loading.describe(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        strict, missing, unexpected, errors = arguments
        if loading.take_in(self, state_dict, prefix, local_metadata, errors):
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
            copies.written_whole(self)
            self.values_changed()
            if self.mask is not None:  # sharded masks are not among the entries
                self.mask_changed()

    def turn(self, transposed: bool) -> None:
        """Let values and mask, which are about to be written, be those of the other canonical matrix."""
        if transposed != self.transposed:
            self.grid = TileGrid(self.grid.cols, self.grid.rows, self.grid.tile)
            self.transposed = transposed
            self.values_changed()
            self.mask_changed()

    def extra_repr(self) -> str:
        """Shapes and density, for ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, density={self.density:.4g}, "
            f"block={self.grid.tile[0]}x{self.grid.tile[1]}, bias={self.bias is not None}"
        )


def _written(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors do not count that, nor do they change in training."""
    return 0 if tensor.is_inference() else tensor._version


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Every ``SparseLinear`` of ``model`` by its module name, in module order; torch's checkpoint wrapper has none."""
    named = [(name.replace(CHECKPOINTED, ""), module) for name, module in model.named_modules()]
    return {name: module for name, module in named if isinstance(module, SparseLinear)}


def let_fall(model: nn.Module, finals: Mapping[str, float], shards: int) -> None:
    """Tell sparse layers, by name, to which density theirs is to fall; ``shards``: tensor-parallel ones of each."""
    for name, final in finals.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseLinear)
        layer.final_density = effective_density(layer.grid.tiles * shards, final)
