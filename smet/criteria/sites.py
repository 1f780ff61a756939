"""What criteria are given: one layer, or one of its ranges, at a topology update or before its first mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from smet.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Site:
    """One range of one layer at a topology update: by default the layer, or this rank's shard of it.

    Nothing in here may be written to. Tensors lie on the device of the mask.
    """

    layer: str
    """Module name of the layer."""
    number: int
    """Which of the layer's ranges this is, over all tensor-parallel shards."""
    update: int
    """Topology updates before this one."""
    seed: int
    mask: Tensor
    """bool ``(tiles,)``: which tiles are active, in the order of their places."""
    columns: int = 1
    """Columns of tiles: tile i lies in row ``i // columns``."""
    balanced: bool = False
    """Whether rows and columns of tiles keep their numbers of active ones."""
    values: Tensor
    """``(active, tile_size)``: fp32 master weights of the active tiles, in the same order."""
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """What the functions said that they need, by name."""

    @property
    def inactive(self) -> Tensor:
        """bool ``(tiles,)``: where something can be grown."""
        return ~self.mask

    @property
    def gradient(self) -> Tensor:
        """``(tiles,)``, needs ``gradient``: |dense gradient| summed over each tile's weights.

        The gradient is that of the step that ends in the update: summed over micro-batches and ranks, before clipping.
        """
        return self._given("gradient")

    @property
    def active_gradient(self) -> Tensor:
        """``(active, tile_size)``, needs ``active_gradient``: gradient of ``values``, as ``gradient`` but signed."""
        return self._given("active_gradient")

    @property
    def moment(self) -> Tensor:
        """``(tiles,)``, needs ``moment``: |exponential mean of dense gradients| summed over each tile's weights."""
        return self._given("moment")

    @property
    def ages(self) -> Tensor:
        """fp32 ``(active,)``, needs ``ages``: optimizer steps since each tile was grown; infinite for those that were
        there from the start, or are so old that nothing differs from that."""
        return self._given("ages")

    def generator(self, purpose: str) -> torch.Generator:
        """A source of random numbers for ``purpose``, the same on all ranks that hold this range."""
        from smet.seeds import generator

        return generator(self.seed, purpose, self.layer, self.number, self.update)

    def copied(self) -> Site:
        """The same for a function that is not to be trusted to leave it as it is."""
        given = {name: tensor.clone() for name, tensor in self.given.items()}
        return replace(self, mask=self.mask.clone(), values=self.values.clone(), given=given)

    def _given(self, name: str) -> Tensor:
        if name not in self.given:
            raise ConfigError(
                f"a criterion reads '{name}' of layer {self.layer} without having asked: put @needs(\"{name}\") above"
                " it"
            )
        return self.given[name]


@dataclass(frozen=True, kw_only=True)
class Start:
    """One whole layer before its first mask. Nothing in here may be written to."""

    layer: str
    """Module name of the layer."""
    tiles: int
    """Its tiles, over all tensor-parallel shards."""
    columns: int = 1
    """Columns of tiles: tile i lies in row ``i // columns``."""
    balanced: bool = False
    """Whether all rows and all columns of tiles are to have equally many active ones, or one more."""
    ranges: int = 1
    """Equal ranges of rows within which columns are balanced, too."""
    seed: int
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """What the function said that it needs, by name; each ``(tiles, tile_size)``."""

    @property
    def weights(self) -> Tensor:
        """``(tiles, tile_size)``, needs ``weights``: the dense initial weights."""
        return self._given("weights")

    @property
    def gradient(self) -> Tensor:
        """``(tiles, tile_size)``, needs ``gradient``: of a loss by the dense initial weights."""
        return self._given("gradient")

    @property
    def flow(self) -> Tensor:
        """``(tiles, tile_size)``, needs ``flow``: gradient of the summed outputs by the absolute weights."""
        return self._given("flow")

    def generator(self, purpose: str) -> torch.Generator:
        """A source of random numbers for ``purpose``, the same on all ranks."""
        from smet.seeds import generator

        return generator(self.seed, purpose, self.layer)

    def _given(self, name: str) -> Tensor:
        if name not in self.given:
            raise ConfigError(f"a mask reads '{name}' without having asked: put @needs(\"{name}\") above it")
        return self.given[name]
