"""First masks that the dense model has to choose (SNIP, SynFlow): computed once, by one rank, for every layout.

Rank 0 builds the whole dense model in its host's memory, in fp32, and all ranks get the masks of all layers: tensor
and pipeline parallelism and every ZeRO stage start from the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from pretrain.config import RunConfig
from pretrain.data.corpus import Corpus
from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.parallel.part import Builder
from pretrain.plan.memory import dense_model_bytes
from smet.criteria import mask_needs
from smet.distribution import active_tiles
from smet.initial import DenseWeight, dense_masks, needs_dense_model
from smet.linear import sparse_layers
from smet.mask import pack

SAMPLES = 8
"""First training samples whose losses SNIP goes by; SynFlow sums the outputs of one."""


def first_masks(config: RunConfig, layout: Layout, corpus: Corpus) -> dict[str, Tensor] | None:
    """Packed masks of whole layers by name; None where no dense model is asked. Collective.

    Raises:
        ConfigError: rank 0's host has not the memory for it, or the masks cannot be chosen; on every rank.
    """
    if not needs_dense_model(config.sparsity):
        return None
    own = layout.agree(lambda: _choose(config, corpus) if layout.is_main else None)
    found: dict[str, Tensor] = layout.gather_objects(own)[0]
    return found


def _choose(config: RunConfig, corpus: Corpus) -> dict[str, Tensor]:
    wanted, there = dense_model_bytes(config), psutil.virtual_memory().available
    if wanted > there:
        raise ConfigError(
            f"sparsity.mask_init '{config.sparsity.mask_init}' needs the dense model, {wanted / 1e9:.3g} GB of rank 0's"
            f" host memory, of which {there / 1e9:.3g} GB are free; take random or magnitude"
        )
    print(f"first masks by {config.sparsity.mask_init}: the dense model computes once, on rank 0's host", flush=True)
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), data_group=None, control=None)
    whole = dataclasses.replace(
        config,
        sparsity=dataclasses.replace(config.sparsity, density=1.0, mask_init="random"),
        parallel=dataclasses.replace(config.parallel, tensor=1, pipeline=1, sequence=False),
    )
    densities = Builder(config, alone).densities
    model = Builder(whole, alone).whole()
    weights = {}
    for name, layer in sparse_layers(model).items():
        if name in densities:
            size, blocks = layer.grid.tile_size, layer.grid.tiles
            weights[name] = DenseWeight(
                layer.values, _by_block(size), layer.grid.shape, active_tiles(blocks, densities[name])
            )
    flow = "flow" in mask_needs(config.sparsity)
    samples = [torch.from_numpy(corpus.sample(number)).long().unsqueeze(0) for number in range(1 if flow else SAMPLES)]
    losses = [_summed_outputs(sample) if flow else _loss(sample) for sample in samples]
    masks = dense_masks(model, weights, config.sparsity, losses)
    return {name: pack(mask) for name, mask in masks.items()}


def _by_block(size: int) -> Callable[[Tensor], Tensor]:
    return lambda values: values.view(-1, size)


def _loss(sample: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: model.loss(sample)  # type: ignore[operator]


def _summed_outputs(sample: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(sample[:, :-1]).sum()
