"""Which layouts a model can have: refusals before any process group exists, and the nearest layouts that work.

Each check is a function of the sections it names as parameters, as in ``pretrain.config.checks``; ``world`` is
the number of ranks, or None where it is not known yet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pretrain.models import inventory_of
from smet.patterns import selects

if TYPE_CHECKING:
    from pretrain.config.schema import DataConfig, ParallelConfig
    from pretrain.models.family import FamilyConfig
    from smet.config import SmetConfig


def _tiles_fit(model: FamilyConfig, sparsity: SmetConfig, parallel: ParallelConfig) -> list[str]:
    if len(sparsity.block) != 2 or min(sparsity.block) < 1 or model.problems():
        return []
    rows, columns = sparsity.block
    misfits: dict[str, str] = {}
    for kind, height, width, turned in _sparse_shards(model, sparsity, parallel):
        if height % rows or width % columns:
            misfits.setdefault(kind, f"{kind} {height} x {width}{' (transposed)' if turned else ''}")
    if not misfits:
        return []
    split = f" on {parallel.tensor} tensor-parallel ranks" if parallel.tensor > 1 else ""
    return [
        f"sparsity.block is [{rows}, {columns}], expected sides that divide every sparse layer's rows x columns{split};"
        f" these do not fit: {', '.join(misfits.values())}"
    ]


def _sparse_shards(
    model: FamilyConfig, sparsity: SmetConfig, parallel: ParallelConfig
) -> Iterator[tuple[str, int, int, bool]]:
    """(kind, rows, columns, whether transposed) of one rank's canonical matrix of every sparse layer, once for all
    layers of one kind and size."""
    seen: set[tuple[str, int, int]] = set()
    inventory = inventory_of(model)
    for name, (outputs, inputs) in inventory.linears():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        if (kind, outputs, inputs) in seen or not selects(name, sparsity):
            continue
        seen.add((kind, outputs, inputs))
        turned = name in inventory.transposed
        height, width = (inputs, outputs) if turned else (outputs, inputs)
        # Tensor parallelism cuts the canonical matrix along its rows; _tensor_fits tells if it cannot.
        whole = parallel.tensor > 0 and height % parallel.tensor == 0
        yield kind, height // parallel.tensor if whole else height, width, turned


def _shards_hold_whole_bytes(model: FamilyConfig, sparsity: SmetConfig, parallel: ParallelConfig) -> list[str]:
    full = sparsity.first_density == 1.0
    if parallel.tensor < 2 or full or _tiles_fit(model, sparsity, parallel) or model.problems():
        return []
    size = sparsity.block[0] * sparsity.block[1]
    misfits = [
        f"{kind} {height * width // size}"
        for kind, height, width, _ in _sparse_shards(model, sparsity, parallel)
        if height * width // size % 8
    ]
    if not misfits:
        return []
    return [
        f"parallel.tensor is {parallel.tensor} with sparsity.block {list(sparsity.block)}, expected tensor-parallel"
        f" shards of a multiple of 8 tiles, whole bytes of the packed mask; these do not fit: {', '.join(misfits)};"
        " use smaller tiles or fewer tensor-parallel ranks"
    ]


def _ranges_fit(model: FamilyConfig, sparsity: SmetConfig, parallel: ParallelConfig) -> list[str]:
    ranges, permuted = sparsity.topology_ranges, not sparsity.problems() and sparsity.is_permuted
    if ranges < 2 and not permuted:
        return []
    if parallel.tensor < 1 or _tiles_fit(model, sparsity, parallel) or model.problems():
        return []
    if ranges % parallel.tensor:
        if permuted:
            return [
                f"sparsity.topology_ranges is {ranges} with sparsity.permute '{sparsity.permute}', expected a multiple"
                f" of parallel.tensor {parallel.tensor}: features are permuted within ranges, which a shard has whole"
            ]
        return [
            f"sparsity.topology_ranges is {ranges}, expected 1 or a multiple of parallel.tensor {parallel.tensor}:"
            " a range lies within one tensor-parallel shard"
        ]
    size, own = sparsity.block[0] * sparsity.block[1], ranges // parallel.tensor
    shards = list(_sparse_shards(model, sparsity, parallel))
    misfits = [f"{kind} {height * width // size}" for kind, height, width, _ in shards if height * width // size % own]
    if permuted and not misfits and (uneven := [f"{kind} {height}" for kind, height, *_ in shards if height % own]):
        return [
            f"sparsity.topology_ranges is {ranges} with sparsity.permute '{sparsity.permute}', expected a number that"
            f" divides the rows of every sparse layer; these do not fit: {', '.join(uneven)} rows per rank"
        ]
    if not misfits:
        return []
    return [
        f"sparsity.topology_ranges is {ranges}, expected a number that cuts every sparse layer into equal ranges of"
        f" tiles; these do not fit: {', '.join(misfits)} tiles per rank"
    ]


def _shared_sizes(model: FamilyConfig, data: DataConfig, parallel: ParallelConfig) -> dict[str, int]:
    """What tensor-parallel ranks share evenly."""
    return {
        **{f"model.{key}": size for key, size in inventory_of(model).shape.shared.items()},
        **({"data.seq_length": data.seq_length} if parallel.sequence else {}),
    }


def _tensor_fits(model: FamilyConfig, data: DataConfig, parallel: ParallelConfig) -> list[str]:
    if parallel.tensor < 2:
        return []
    shared = _shared_sizes(model, data, parallel)
    common = math.gcd(*shared.values())
    fitting = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
    return [
        f"{name} is {size}, expected a multiple of parallel.tensor {parallel.tensor}, whose ranks share it evenly;"
        f" tensor sizes that fit this model: {fitting}"
        for name, size in shared.items()
        if size % parallel.tensor
    ]


def _stages_fit(model: FamilyConfig, parallel: ParallelConfig) -> list[str]:
    shape = inventory_of(model).shape
    if parallel.pipeline <= shape.layers:
        return []
    return [
        f"parallel.pipeline is {parallel.pipeline}, expected at most model.{shape.keys['layers']} {shape.layers}: each"
        " stage needs a decoder layer"
    ]


def _pipeline_fits_zero(
    model: FamilyConfig, data: DataConfig, sparsity: SmetConfig, parallel: ParallelConfig, world: int | None
) -> list[str]:
    if parallel.pipeline < 2 or parallel.zero_stage not in (2, 3):
        return []
    found = nearest_layouts(model, data, sparsity, parallel, world) if world else []
    with_ranks = f"; with {world} ranks these work: {'; '.join(found)}" if found else ""
    return [
        f"parallel.pipeline is {parallel.pipeline} with zero_stage {parallel.zero_stage}, expected zero_stage 1:"
        " a pipeline sums gradients over its micro-batches in place, while ZeRO-2 and 3 scatter them after every"
        f" micro-batch; set zero_stage to 1, or pipeline to 1 with zero_stage 2 or 3{with_ranks}"
    ]


LAYOUT_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _tiles_fit,
    _tensor_fits,
    _shards_hold_whole_bytes,
    _ranges_fit,
    _stages_fit,
    _pipeline_fits_zero,
)


def works(model: FamilyConfig, data: DataConfig, sparsity: SmetConfig, parallel: ParallelConfig, world: int) -> bool:
    """Whether ``parallel`` is a possible layout of this model on ``world`` ranks."""
    return (
        world % (parallel.tensor * parallel.pipeline) == 0
        and not parallel.problems()
        and not (parallel.pipeline > 1 and parallel.zero_stage > 1)
        and not _tensor_fits(model, data, parallel)
        and not _stages_fit(model, parallel)
        and not _tiles_fit(model, sparsity, parallel)
        and not _shards_hold_whole_bytes(model, sparsity, parallel)
        and not _ranges_fit(model, sparsity, parallel)
    )


def candidates(parallel: ParallelConfig, world: int) -> Iterator[ParallelConfig]:
    """Every layout of ``world`` ranks, possible for a model or not."""
    for tensor in divisors(world):
        for pipeline in divisors(world // tensor):
            for zero_stage in (1, 2, 3):
                sequence = parallel.sequence and tensor > 1
                yield replace(parallel, tensor=tensor, pipeline=pipeline, zero_stage=zero_stage, sequence=sequence)


def nearest_layouts(
    model: FamilyConfig, data: DataConfig, sparsity: SmetConfig, parallel: ParallelConfig, world: int, count: int = 3
) -> list[str]:
    """The possible layouts of ``world`` ranks that change least of ``parallel``, in words."""

    def distance(other: ParallelConfig) -> float:
        factors = (other.tensor / max(1, parallel.tensor), other.pipeline / max(1, parallel.pipeline))
        return sum(abs(math.log2(factor)) for factor in factors) + 0.6 * abs(other.zero_stage - parallel.zero_stage)

    ranked = sorted(candidates(parallel, world), key=distance)
    found = (other for other in ranked if works(model, data, sparsity, other, world))
    return [describe(other, world) for other, _ in zip(found, range(count), strict=False)]


def describe(parallel: ParallelConfig, world: int) -> str:
    """A layout in words, such as ``tensor 2, pipeline 4, zero_stage 1 (2 data-parallel ranks)``."""
    data = world // (parallel.tensor * parallel.pipeline)
    ranks = f"{data} data-parallel rank{'s' if data > 1 else ''}"
    return f"tensor {parallel.tensor}, pipeline {parallel.pipeline}, zero_stage {parallel.zero_stage} ({ranks})"


def divisors(number: int) -> list[int]:
    """All divisors of ``number``, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
