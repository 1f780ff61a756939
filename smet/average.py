"""Averages of sparse models, weight by weight: exponential (EMA), equal (SWA), and of several models (soups).

``values[i]`` of a sparse layer is no fixed weight, so averages are kept by place: for each layer the *union* of the
masks seen so far, and an fp32 value for each of its tiles. A weight counts as 0 while it is inactive, as it does
in the model.

Bytes held: 4 per weight of the union and 1 per tile of it, 2 bits per tile of the layer, 4 per weight of all
else. The union begins as the mask and grows with each update by what was regrown; an exponential average drops
inactive tiles again once they are below the rounding of its largest weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smet import copies
from smet.dtensors import is_cut
from smet.errors import ConfigError
from smet.linear import SparseLinear, sparse_layers
from smet.mask import pack, unpack

NEGLIGIBLE = 2.0**-24
"""Relative to a layer's largest average: half a unit in the last place of fp32."""


@dataclass
class _Layer:
    """The average of one layer: ``values`` ``(tiles of the union, tile size)``."""

    union: Tensor
    values: Tensor
    current: Tensor
    """The packed mask seen last."""
    inside: Tensor
    """Which tiles of the union are in it."""


class ModelAverage:
    """The average of a model's weights over time, or over models.

    Args:
        model: gives the first values, and the shapes.
        decay: of the exponential average, in (0, 1); None = all updates count alike.
        device: where the average is kept; default: beside the model's parameters.

    Raises:
        ConfigError: a decay outside of (0, 1), or values that an engine keeps elsewhere (ZeRO-3).
    """

    def __init__(self, model: nn.Module, decay: float | None = None, device: torch.device | str | None = None):
        if decay is not None and not 0.0 < decay < 1.0:
            raise ConfigError(f"decay is {decay}, expected a number between 0 and 1, such as 0.999, or None")
        self.decay, self.device = decay, device
        self.count = 0
        """Models averaged so far."""
        self._shapes: dict[str, list[int]] = {}
        self._layers: dict[str, _Layer] = {}
        self._tensors: dict[str, Tensor] = {}
        self.update(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take ``model`` as it is now into the average. Collective where its masks are sharded.

        Raises:
            ConfigError: it is of other shapes.
        """
        layers, others = _parts(model)
        shapes = _shapes(model)
        if self.count:
            self._require(shapes, "the model's layers are not those that the average began with")
        self._shapes = shapes
        share = 1.0 / (self.count + 1) if self.decay is None else 1.0 - self.decay
        for name, layer in layers.items():
            self._take_layer(name, layer, share)
        for name, tensor in others.items():
            new = tensor.detach().to(self.device or tensor.device, copy=True)
            if not new.is_floating_point() or not self.count:
                self._tensors[name] = new.to(_precise(new)) if new.is_floating_point() else new
            else:
                self._tensors[name].lerp_(new.to(self._tensors[name]), share)
        self.count += 1

    def _require(self, shapes: dict[str, list[int]], text: str) -> None:
        """Refuse a model of other names or shapes, before anything is changed."""
        if other := [name for name in {**self._shapes, **shapes} if self._shapes.get(name) != shapes.get(name)]:
            first = f"{other[0]} is {_told(shapes, other[0], 'missing')}"
            first += f", expected {_told(self._shapes, other[0], 'none')}"
            raise ConfigError(f"{text}: {first}" + (f" (and {len(other) - 1} more)" if len(other) > 1 else ""))

    def _take_layer(self, name: str, layer: SparseLinear, share: float) -> None:
        if layer.values.numel() != layer.active * layer.grid.tile_size or is_cut(layer.values):
            raise ConfigError(
                f"the values of {name} are partitioned; gather them first (deepspeed.zero.GatheredParameters; unshard()"
                " of modules that fully_shard was called on)"
            )
        device = self.device or layer.values.device
        bits = layer.packed_mask().to(device, copy=True)
        values = layer.values.detach().to(device, _precise(layer.values), copy=True).view(-1, layer.grid.tile_size)
        own = self._layers.get(name)
        if own is None:
            everything = torch.ones(layer.active, dtype=torch.bool, device=device)
            self._layers[name] = _Layer(bits, values, bits, everything)
            return
        if not torch.equal(bits, own.current):
            own = self._layers[name] = self._widened(own, bits, layer.grid.tiles)
        own.values.mul_(1.0 - share)
        own.values[own.inside] += values.mul_(share)

    def _widened(self, own: _Layer, bits: Tensor, tiles: int) -> _Layer:
        """``own`` over a union that also holds the tiles of ``bits``."""
        old, now = unpack(own.union, tiles), unpack(bits, tiles)
        size = own.values.abs().amax(1)
        worth = torch.ones_like(size, dtype=torch.bool) if self.decay is None else size > size.max() * NEGLIGIBLE
        union = now.clone()
        union[old.nonzero().view(-1)[worth]] = True
        values = own.values.new_zeros(int(union.sum()), own.values.shape[1])
        values[old[union]] = own.values[union[old]]
        return _Layer(pack(union), values, bits, now[union])

    @torch.no_grad()
    def model(self, like: nn.Module) -> nn.Module:
        """A copy of ``like`` with the averaged weights, for evaluation and export; nothing in it is trained.

        Its sparse layers have the union as their mask (``smet.densify`` makes one an ``nn.Linear``).

        Raises:
            ConfigError: ``like`` is of other shapes.
        """
        self._require(_shapes(like), "the model's layers are not those of the average")
        averaged = copy.deepcopy(like).requires_grad_(False)
        layers, others = _parts(averaged)
        for name, layer in layers.items():
            own = self._layers[name]
            layer.active = own.values.shape[0]
            layer.values = nn.Parameter(own.values.view(-1).to(layer.values), requires_grad=False)
            layer.mask = None if layer.is_full else own.union.to(layer.values.device, copy=True)
            layer.mask_changed()
            copies.forget(layer)
        for layer in sparse_layers(averaged).values():  # what the last update closed is not 0 on average
            layer.closed, layer.closed_tiles = None, 0
        for name, tensor in others.items():
            tensor.copy_(self._tensors[name])
        return averaged

    @property
    def bytes_held(self) -> int:
        """Bytes of the average."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self._all())

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        for name, own in self._layers.items():
            yield from ((f"{name}:{key}", tensor) for key, tensor in vars(own).items())
        yield from self._tensors.items()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, to be saved beside the model's and the optimizer's."""
        return {
            "count": self.count,
            "shapes": dict(self._shapes),
            "layers": {name: dict(vars(own)) for name, own in self._layers.items()},
            "tensors": dict(self._tensors),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``.

        Raises:
            ConfigError: it is the average of another model.
        """
        if {*state["layers"], *state["tensors"]} != {*self._layers, *self._tensors}:
            raise ConfigError("the average was saved of a model with other layers")
        if "shapes" in state:  # states of the first release have none
            self._require(state["shapes"], "the average was saved of a model with other layers")
        self.count = state["count"]
        for name, saved in state["layers"].items():
            device = self._layers[name].values.device
            self._layers[name] = _Layer(**{key: tensor.to(device, copy=True) for key, tensor in saved.items()})
        for name, saved in state["tensors"].items():
            self._tensors[name] = saved.to(self._tensors[name].device, copy=True)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _told(shapes: dict[str, list[int]], name: str, absent: str) -> str:
    shape = shapes.get(name)
    if shape is None:
        return absent
    return f"{shape[:4]} with features permuted ({bytes(shape[4:]).hex()})" if len(shape) == 20 else str(shape)


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """Of a sparse layer (rows, columns, tile's height and width) of its canonical matrix, and the bytes of its
    permutations' digest if it has any; of a tensor its shape."""
    layers, others = _parts(model)
    grids = {name: _grid(one) for name, one in layers.items()}
    # Full layers without permutations keep the shape that states saved before there were any have for them.
    full = {f"{name}.values": one for name, one in sparse_layers(model).items() if one.is_full and one.orders.digest()}
    return {
        **grids,
        **{name: list(tensor.shape) for name, tensor in others.items()},
        **{name: _grid(one) for name, one in full.items()},
    }


def _grid(layer: SparseLinear) -> list[int]:
    return [layer.grid.rows, layer.grid.cols, *layer.grid.tile, *bytes.fromhex(layer.orders.digest())]


def _parts(model: nn.Module) -> tuple[dict[str, SparseLinear], dict[str, Tensor]]:
    """Sparse layers with a mask, and all parameters and buffers that are not theirs to place."""
    layers = {name: layer for name, layer in sparse_layers(model).items() if not layer.is_full}
    placed = {f"{name}.{part}" for name in layers for part in ("values", "mask")}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return layers, {name: tensor for name, tensor in tensors.items() if name not in placed}
