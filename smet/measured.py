"""Who multiplies, by measurement: the backends that serve a shape are timed once, and all ranks take the same.

The first rank measures, whatever it holds itself, and tells the others: times differ between ranks, and ranks that hold
the same layer have to multiply it alike. Without this, ``smet.compute.choose`` goes by its table.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smet.compute import AUTO, TABLE, Decided, by_name, tiles
from smet.kernels import compiler
from smet.linear import SparseLinear
from smet.mask import TileGrid, pack

Gather = Callable[[Any], list[Any]]
"""What every rank gave, on every rank and in the same order. Collective."""

MOST_ROUNDS, SECONDS = 7, 0.1
"""Rounds of one shape: so many at most, and no further one after so long. One before them warms up."""


class Case(NamedTuple):
    """All that the time of a layer's three products depends on; alike on the tensor-parallel ranks of a layer."""

    device: str
    dtype: torch.dtype
    tokens: int
    rows: int
    """Of the canonical matrix."""
    cols: int
    transposed: bool
    tile: tuple[int, int]
    density: float
    kept: bool
    """Whether the dense weight is kept between uses."""

    def __str__(self) -> str:
        outputs, inputs = (self.cols, self.rows) if self.transposed else (self.rows, self.cols)
        more = ", transposed" * self.transposed + ", dense residency" * self.kept
        return (
            f"{outputs} x {inputs} in tiles of {self.tile[0]} x {self.tile[1]} at {self.density:g}, {self.tokens} "
            f"tokens of {str(self.dtype).removeprefix('torch.')} on {self.device}{more}"
        )


@dataclass
class Choices:
    """What was chosen for each shape, and why."""

    machine: str = ""
    """What it was measured on."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Backend by shape, as ``Case`` spells it."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each backend took, of the shapes that were measured now."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a shape could not be measured; there the table decides."""

    def describe(self) -> list[str]:
        """Lines on what was measured now; none where nothing was."""
        lines = [f"products not measured, the table decides: {case} ({why})" for case, why in self.failed.items()]
        if not self.seconds:
            return lines
        counts = Counter(self.chosen[case] for case in self.seconds)
        fastest = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        shapes = f"{len(self.seconds)} {'shape' if len(self.seconds) == 1 else 'shapes'}"
        ratios: dict[str, list[float]] = {}
        for times in self.seconds.values():
            for name in times.keys() - {"dense"} if "dense" in times else ():
                ratios.setdefault(name, []).append(times[name] / times["dense"])
        taken = ""
        for name, found in ratios.items():
            spread = " to ".join(dict.fromkeys(f"{each:.2f}" for each in (min(found), max(found))))
            taken += f"; by {name} they take {spread} of the dense time"
        return [*lines, f"products measured in {shapes}, fastest by {fastest}{taken}"]

    def changes(self, before: Mapping[str, str]) -> int:
        """Shapes for which ``before`` had another backend, or none: they are not those that it knows."""
        return sum(before.get(case) != name for case, name in self.chosen.items())


def machine(device: torch.device) -> str:
    """What times of products depend on beside their shapes, in a few words."""
    on = f"{tiles.kernels_on(device) or 'no kernels for tiles'}, torch {torch.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {on}"
    return f"{compiler.model_name()}, {torch.get_num_threads()} threads, {on}"


def measure(
    layers: Iterable[SparseLinear], tokens: int, dtype: torch.dtype, gather: Gather, first: bool,
    known: Callable[[str], Mapping[str, str]] | None = None,
) -> Choices:  # fmt: skip
    """Decide who multiplies in ``layers``, for inputs of so many tokens. Collective over the ranks that are gathered.

    Layers whose backend is told, by their setting or by ``SMET_COMPUTE``, are left as they are, as are those that only
    one backend serves.

    Args:
        tokens: of a micro-batch, all its sequences together.
        dtype: that of inputs and values when they are multiplied.
        gather: see ``Gather``.
        first: whether this is the first rank of those.
        known: earlier choices that hold on the machine that it is given; they are taken without measuring.

    Returns:
        The same on every rank.
    """
    asked = [layer for layer in layers if _is_asked(layer)]
    for layer in asked:
        layer.decided = None
    cases = {layer: case_of(layer, tokens, dtype) for layer in asked}
    gathered = gather({case: _serving(layer, tokens, dtype) for layer, case in cases.items()})
    result: Choices = gather(_choose(gathered, known) if first else None)[0]
    for layer, case in cases.items():
        if (name := result.chosen.get(str(case))) is not None:
            layer.decided = Decided(name, tokens, dtype)
    return result


def case_of(layer: SparseLinear, tokens: int, dtype: torch.dtype) -> Case:
    """What the time of the products of ``layer`` depends on."""
    grid = layer.grid
    # Shards of a layer differ a little in what is really active, not in what was asked for.
    density = round(layer.configured_density, 2) or layer.configured_density
    return Case(
        layer.values.device.type, dtype, tokens, grid.rows, grid.cols, layer.transposed, grid.tile, density,
        layer.keep_dense,
    )  # fmt: skip


def _is_asked(layer: SparseLinear) -> bool:
    return (os.environ.get("SMET_COMPUTE") or vars(layer).get("compute", AUTO)) == AUTO and not layer.is_full


def _serving(layer: SparseLinear, tokens: int, dtype: torch.dtype) -> list[str]:
    """Backends that can serve ``layer``, in the table's order."""
    x = torch.empty(1, dtype=dtype, device=layer.values.device).expand(tokens, layer.in_features)
    return [name for name in TABLE if by_name(name).serves(layer, x, forced=True)]


def _choose(gathered: list[dict[Case, list[str]]], known: Callable[[str], Mapping[str, str]] | None) -> Choices:
    """The choice of the first rank, for the shapes of all."""
    result = Choices()
    for case in dict.fromkeys(case for part in gathered for case in part):
        serving = [name for name in TABLE if all(name in part.get(case, [name]) for part in gathered)]
        if len(serving) < 2:
            if any(len(part.get(case, [])) > 1 for part in gathered):  # what some ranks cannot do, none does
                result.chosen[str(case)] = serving[0]
            continue
        if not result.machine:
            result.machine = machine(torch.device(case.device))
        before = known(result.machine).get(str(case)) if known is not None else None
        if before in serving:
            result.chosen[str(case)] = before
            continue
        try:
            taken = _times(case, serving)
        except RuntimeError as error:  # out of memory, a kernel that does not run here
            result.failed[str(case)] = str(error).partition("\n")[0]
            continue
        result.seconds[str(case)] = taken
        result.chosen[str(case)] = min(taken, key=taken.__getitem__)
    return result


@torch.no_grad()
def _times(case: Case, names: list[str]) -> dict[str, float]:
    """Seconds of the three products together by each backend: medians of rounds in which they take turns."""
    layer, x, grad = _sample(case)
    values = layer.values.detach()
    if not all(by_name(name).serves(layer, x, forced=True) for name in names):
        raise RuntimeError("another rank holds such layers, and this one cannot multiply them")
    device = x.device
    clock = time.thread_time if x.is_cpu and torch.get_num_threads() == 1 else time.perf_counter

    def products(name: str) -> float:
        by = by_name(name)
        _wait(device)
        begin = clock()
        by.forward(layer, x, values)
        by.input_gradient(layer, grad, values)
        by.values_gradient(layer, x, grad)
        _wait(device)
        return clock() - begin

    for name in names:
        products(name)
    taken: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for _ in range(MOST_ROUNDS):
        for name in names:
            taken[name].append(products(name))
        if time.perf_counter() - begin > SECONDS:
            break
    return {name: median(times) for name, times in taken.items()}


def _sample(case: Case) -> tuple[SparseLinear, Tensor, Tensor]:
    """A layer of that shape with random tiles, its input, and the gradient of its output."""
    grid = TileGrid(case.rows, case.cols, case.tile)
    chance = torch.Generator().manual_seed(0)  # the run's own numbers stay as they are
    count = max(1, min(grid.tiles - 1, round(grid.tiles * case.density)))
    active = torch.zeros(grid.tiles, dtype=torch.bool)
    active[torch.randperm(grid.tiles, generator=chance)[:count]] = True
    where: dict[str, Any] = {"device": case.device, "dtype": case.dtype}
    values = torch.empty(count * grid.tile_size, **where)
    outputs, inputs = (case.cols, case.rows) if case.transposed else (case.rows, case.cols)
    layer = SparseLinear(inputs, outputs, pack(active), values, case.tile, case.transposed).to(case.device)
    layer.keep_dense = case.kept
    layer.requires_grad_(False)
    x, grad = torch.empty(case.tokens, inputs, **where), torch.empty(case.tokens, outputs, **where)
    random = torch.Generator(x.device).manual_seed(0)
    for tensor in (layer.values, x, grad):  # numbers of ordinary size: what is all alike draws less power
        tensor.normal_(generator=random)
    return layer, x, grad


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
