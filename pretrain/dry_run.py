"""One rank of any layout on one machine: built on the meta device, checked against its plan, and printed.

No data, no memory and no other process is needed: tensors have shapes only, and process groups are torch's
fake ones, which know their ranks and send nothing.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.changes import settle
from pretrain.config import RunConfig
from pretrain.config.names import in_run_file, settings_by_run_file
from pretrain.data.corpus import open_corpus
from pretrain.data.epochs import epochs, of_validation, too_many
from pretrain.data_specs import blend_spec, training_spec
from pretrain.environment import check_world
from pretrain.errors import DataError, LaunchError
from pretrain.idle import idle
from pretrain.layout import Coordinates, Layout
from pretrain.lookup import require_found
from pretrain.models import FAMILIES
from pretrain.parallel.part import Builder, nest
from pretrain.parallel.trial import require_cut
from pretrain.plan import plan_rank, stages_of
from pretrain.plan.table import layout_line, table
from pretrain.run_folder import RunFolder
from smet.bank import MaskBank
from smet.distribution import active_tiles
from smet.linear import SparseLinear, sparse_layers
from smet.mask import TileGrid, packed_bytes
from smet.notices import run_notices
from smet.patterns import selects
from smet.say import note, say


@settings_by_run_file()
def dry_run(config: RunConfig, rank: int = 0, world_size: int | None = None, as_json: bool = False) -> str:
    """Build rank ``rank`` of ``world_size`` ranks, and return what to print.

    Args:
        world_size: default is the smallest that the layout allows, tensor x pipeline.

    Raises:
        LaunchError: a layout that cannot work, or a rank that is not in it.
        ConfigError: a batch that does not divide, tiles that do not fit, or a name that means nothing.
    """
    require_found(config)
    settle(config, RunFolder(config.train.output_dir).settings())
    shards = config.parallel.tensor * config.parallel.pipeline
    world = shards if world_size is None else world_size
    check_world(world, config)
    if not 0 <= rank < world:
        raise LaunchError(f"--rank is {rank}, expected 0 to {world - 1} of {world} ranks (--world-size)")
    layout = fake_layout(config, rank, world)
    try:
        if config.model.family not in FAMILIES:
            require_cut(config)
        model = build(config, layout)
        _require_as_planned(config, layout, model)
    finally:
        dist.destroy_process_group()
    for notice in (*idle(config), *run_notices(config.sparsity, config.train.steps)):
        note(in_run_file(notice))
    return _report(config, layout, model, as_json)


def fake_layout(config: RunConfig, rank: int, world: int) -> Layout:
    """The layout of ``rank`` with process groups that send nothing. Makes a default process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    tensor, stages = config.parallel.tensor, config.parallel.pipeline
    data = world // (tensor * stages)
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    place = Coordinates.of(rank, data, tensor)
    places = [(other, Coordinates.of(other, data, tensor)) for other in range(world)]
    across_data = [r for r, p in places if (p.stage, p.tensor) == (place.stage, place.tensor)]
    across_tensor = [r for r, p in places if (p.stage, p.data) == (place.stage, place.data)]
    return Layout(
        world, rank, data, place.data, torch.device("meta"), data_group=dist.new_group(across_data), control=None,
        tensor_size=tensor, tensor_rank=place.tensor,
        tensor_group=dist.new_group(across_tensor) if tensor > 1 else None, stages=stages, stage=place.stage,
    )  # fmt: skip


class ShapeBuilder(Builder):
    """Builds the modules that ``Builder`` builds, without values: parameters and masks stay on meta."""

    def _fill(self, model: nn.Module) -> None:
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and (sparse := self._shape(name, module)) is not None:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, sparse)

    def _shape(self, name: str, layer: nn.Linear) -> SparseLinear | None:
        """The sparse layer in place of ``layer``, or None where an ordinary one stays."""
        sparsity, shards = self.config.sparsity, self.layout.tensor_size
        selected, transposed = selects(name, sparsity), name in self.inventory.transposed
        if not selected and not transposed:
            return None
        shape = (layer.in_features, layer.out_features) if transposed else (layer.out_features, layer.in_features)
        grid = TileGrid(*shape, sparsity.block if selected else (1, 1))
        active = grid.tiles
        if selected:  # random masks spread the active tiles almost evenly over the shards
            active = round(active_tiles(grid.tiles * shards, self.densities[name]) / shards)
        bits = torch.empty(grid.mask_bytes, dtype=torch.uint8, device="meta")
        values = torch.empty(active * grid.tile_size, device="meta")
        made = SparseLinear(layer.in_features, layer.out_features, bits, values, grid.tile, transposed, layer.bias)
        if selected and self.finals.get(name, self.densities[name]) < self.densities[name]:
            made.closed = torch.empty(packed_bytes(active), dtype=torch.uint8, device="meta")
        return made


def build(config: RunConfig, layout: Layout) -> nn.Module:
    """This rank's part of the model on meta, under the names of the whole model."""
    builder = ShapeBuilder(config, layout)
    if layout.stages == 1:
        return builder.whole()
    makers = dict(builder.makers())
    own = [block.name for block in stages_of(config)[layout.stage]]
    shape, first = builder.inventory.shape, builder.inventory.blocks[0].name
    # A tied head in a stage of its own holds a copy of the embedding.
    source = {shape.head: first} if shape.tied else {}
    return nest({name: builder.block(place := source.get(name, name), makers[place]) for name in own})


def _require_as_planned(config: RunConfig, layout: Layout, model: nn.Module) -> None:
    """The built modules and the plan come from different code: where they differ, one of them is wrong."""
    plan = plan_rank(config, layout.world_size, layout.stage)
    built = sum(parameter.numel() for parameter in model.parameters())
    if built != plan.stored_weights:
        raise RuntimeError(f"rank {layout.rank} was built with {built} stored weights, planned {plan.stored_weights}")
    replicated = config.sparsity.mask_residency == "replicated"
    bank = MaskBank(model, layout.group, replicated=replicated)
    layers = sparse_layers(model).values()
    own = [bits for layer in layers for bits in (layer.mask, layer.closed) if bits is not None]
    masks = sum(tensor.numel() for tensor in [*bank.tensors(), *own])
    if masks != plan.kinds["masks"]:
        raise RuntimeError(f"rank {layout.rank} was built with {masks} bytes of masks, planned {plan.kinds['masks']}")


def _report(config: RunConfig, layout: Layout, model: nn.Module, as_json: bool) -> str:
    plan = plan_rank(config, layout.world_size, layout.stage)
    place: dict[str, Any] = {"rank": layout.rank, "data": layout.dp_rank, "tensor": layout.tensor_rank,
                             "stage": layout.stage, "world_size": layout.world_size}  # fmt: skip
    length, warnings = _length(config)
    if as_json:
        return json.dumps({**place, "plan": plan.to_json(), "epochs": length})
    for warning in warnings:
        say(warning, logging.WARNING)
    layers = sparse_layers(model).values()
    active, total = (sum(counts) for counts in zip(*((la.values.numel(), la.grid.tiles * la.grid.tile_size)
                                                     for la in layers), strict=True)) if layers else (0, 0)  # fmt: skip
    dense = plan_rank(config, layout.world_size, layout.stage, dense=True)
    return "\n".join(
        [
            layout_line(config, layout.world_size),
            f"rank {layout.rank}: data {layout.dp_rank}, tensor {layout.tensor_rank}, stage {layout.stage} of "
            f"{layout.stages}; blocks {plan.blocks[0]} to {plan.blocks[-1]}",
            f"built on meta: {len(layers)} sparse layers with {active:,} of {total:,} weights, "
            f"{plan.stored_weights:,} stored weights in all",
            "",
            table(plan, dense),
            "",
            _length_line(config, length),
            "dry run: all checks passed, nothing was trained",
        ]
    )


def _length(config: RunConfig) -> tuple[float | None, list[str]]:
    """Epochs of the whole run, and warnings about them; None where the data does not lie here."""
    try:
        corpus = open_corpus(training_spec(config.data), config.data.seq_length, config.data.seed, check=False)
    except (DataError, OSError):
        return None, []
    samples = config.train.steps * config.train.global_batch_size
    found, validation = too_many(corpus, config.train.steps, config.train.global_batch_size), None
    with suppress(DataError, OSError):
        if spec := blend_spec(config.data.validation):
            validation = open_corpus(spec, config.data.seq_length, config.data.seed, check=False)
    return epochs(corpus, samples), found + of_validation(corpus, validation, config.evaluation.samples)


def _length_line(config: RunConfig, length: float | None) -> str:
    train = config.train
    tokens = train.steps * train.global_batch_size * config.data.seq_length
    told = "epochs unknown, since its data cannot be read here" if length is None else f"{length:.3g} epochs"
    return f"{train.steps:,} steps of {tokens // train.steps:,} tokens = {tokens:,} tokens, {told}"
