"""What a linear layer is stored as, from the settings alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from smet.config import SmetConfig
from smet.distribution import active_tiles, effective_density, layer_densities
from smet.mask import TileGrid, packed_bytes
from smet.patterns import selects


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What the vectors of one ``SparseLinear`` mean, or of one tensor-parallel shard of it."""

    name: str
    """Module name, such as ``model.layers.0.mlp.up_proj``."""
    grid: TileGrid
    """Tiles of one shard's canonical matrix."""
    transposed: bool
    density: float
    """What decides the learning rate: see ``smet.distribution.effective_density``."""
    active: int
    """Tiles of the whole layer that the settings make active; exact, not an expectation."""
    selected: bool
    """Whether the settings make it sparse; transposed layers that they leave dense are stored as full ones."""
    aged: bool
    """Whether its weights are ever regrown, or closed."""
    final: float
    """What its density falls to; ``density`` where it stays."""
    shards: int = 1
    """Tensor-parallel ranks that its canonical rows are cut over."""

    @property
    def mask(self) -> str:
        """Name of the packed mask's vector; a full layer has none."""
        return f"{self.name}.mask"

    @property
    def is_full(self) -> bool:
        """Whether every tile is active."""
        return self.active == self.grid.tiles * self.shards

    @property
    def stored(self) -> int:
        """Elements of its values. Shards of random masks differ a little; this is the mean over them."""
        return round(self.active / self.shards) * self.grid.tile_size

    @property
    def mask_bytes(self) -> int:
        """Bytes of its packed mask; 0 where there is none."""
        return 0 if self.is_full else self.grid.mask_bytes

    @property
    def group(self) -> str:
        """Optimizer group, as ``smet.parameter_groups`` names it."""
        return group_name(self.density, self.final)

    @property
    def closed_bytes(self) -> int:
        """Bytes that say which stored tiles are closed; 0 where density stays."""
        return packed_bytes(round(self.active / self.shards)) if self.final < self.density else 0


def first_and_final(
    shapes: Mapping[str, tuple[int, int]], config: SmetConfig
) -> tuple[dict[str, float], dict[str, float]]:
    """Density at first of each of the layers ``shapes``, and that in the end where density falls."""
    first = layer_densities(shapes, config.first_density, config.distribution) if shapes else {}
    return first, layer_densities(shapes, config.density, config.distribution) if shapes and config.falls else {}


def group_name(density: float, final: float) -> str:
    """Name of the optimizer group of sparse layers of one density, or one that falls alike."""
    return f"sparse-{density:.4g}" + (f"-to-{final:.4g}" if final < density else "")


def layer_specs(
    linears: Mapping[str, tuple[int, int]], config: SmetConfig, transposed: Collection[str] = (), shards: int = 1
) -> dict[str, LayerSpec]:
    """The layers that are stored as ``SparseLinear``, by name.

    Args:
        linears: name to (out, in) of every linear layer, whole.
        transposed: names of those whose canonical matrix is ``(in, out)``.
        shards: ranks that the canonical rows are cut over.

    Raises:
        ConfigError: a tile does not divide a layer.
    """
    asked, finals = first_and_final({name: shape for name, shape in linears.items() if selects(name, config)}, config)
    found = {}
    for name, (outputs, inputs) in linears.items():
        turned, selected = name in transposed, name in asked
        if not selected and not turned:
            continue
        rows, cols = (inputs, outputs) if turned else (outputs, inputs)
        grid = TileGrid(rows // shards, cols, config.block if selected else (1, 1))
        tiles, density = grid.tiles * shards, asked.get(name, 1.0)
        active, density = active_tiles(tiles, density), effective_density(tiles, density)
        final = min(density, effective_density(tiles, finals[name])) if name in finals else density
        found[name] = LayerSpec(
            name=name, grid=grid, transposed=turned, density=density, active=active, selected=selected,
            aged=selected and config.dynamic and final < 1.0, final=final, shards=shards,
        )  # fmt: skip
    return found
