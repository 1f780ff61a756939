"""What a checkpoint holds of a run: logical vectors, and the small state beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pretrain.checkpoint.vectors import LogicalVector, Vectors
from pretrain.engine import Engine
from pretrain.layout import Layout
from pretrain.models.inventory import Role
from pretrain.parallel.tensor import is_replicated, offsets, role_of
from smet.bank import MaskBank
from smet.growth import part_of
from smet.linear import sparse_layers

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


def vectors_of(engine: Engine, bank: MaskBank, layout: Layout) -> Vectors:
    """Live fragments of everything that training changes: loading into them restores the run. Collective.

    For a parameter ``p``: ``p`` (fp32 master), what the optimizer's formula declares (AdamW: ``p/exp_avg``,
    ``p/exp_avg_sq``) and, if its weights can be regrown, ``p/birth``. For a sparse layer ``l``: ``l.mask``, the packed
    bits, and where a criterion needs it ``l.mean_gradient``, by block of the dense canonical matrix. A tensor-parallel
    shard is a range of the whole vector; copies that another rank saves are marked as replicas.
    """
    places = offsets(engine.model, layout)
    vectors: Vectors = {}
    for name, parameter in engine.model.named_parameters():
        if not parameter.requires_grad:
            continue
        fragment = engine.store.fragment(parameter)
        start, total = places.get(name, (0, fragment.total))
        copy = is_copy(parameter, layout)
        for key, tensor in {"": fragment.master, **fragment.state}.items():
            vectors[f"{name}/{key}".rstrip("/")] = LogicalVector(tensor, start + fragment.start, total, copy)
    for name, layer in sparse_layers(engine.model).items():
        if not layer.is_full:
            start, total = places.get(f"{name}.mask", (0, layer.grid.mask_bytes))
            first, local = bank.fragment(layer)
            vectors[f"{name}.mask"] = LogicalVector(local, start + first, total)
    return vectors | _means(engine, layout)


def _means(engine: Engine, layout: Layout) -> Vectors:
    """Mean dense gradients: each rank's part of the tiles of its shard."""
    layers, vectors = sparse_layers(engine.model), Vectors()
    for name, mean in engine.store.optimizer.topology.moments.items():
        grid = layers[name].grid
        first, count = part_of(grid.tiles, engine.store.group)
        elements = grid.tiles * grid.tile_size
        start = layout.tensor_rank * elements + first * grid.tile_size
        vectors[f"{name}.mean_gradient"] = LogicalVector(mean[:count].view(-1), start, layout.tensor_size * elements)
    return vectors


def is_copy(parameter: nn.Parameter, layout: Layout) -> bool:
    """Whether another rank outside this one's data-parallel group saves the same vector."""
    if layout.tensor_rank > 0 and is_replicated(parameter):
        return True
    return role_of(parameter) is Role.EMBEDDING and layout.stage > 0  # a tied head in the last stage


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The small, plain state of a run; equal on all ranks."""
    return {
        "step": trainer.step,
        "consumed_samples": trainer.consumed_samples,
        "passed_over": trainer.passed_over,
        "topology": trainer.topology.state_dict(),
        "callbacks": {callback.name: callback.state_dict() for callback in trainer.callbacks},
        "data_fingerprint": trainer.loader.corpus.fingerprint,
        "torch_rng": torch.get_rng_state().numpy().tobytes().hex(),
        "config": trainer.config.to_dict(),
    }


def restore_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put ``state_of``'s result back."""
    trainer.step = state["step"]
    trainer.consumed_samples = state["consumed_samples"]
    trainer.passed_over = [(begin, end) for begin, end in state.get("passed_over", [])]
    trainer.topology.load_state_dict(state["topology"])
    for callback in trainer.callbacks:
        if callback.name in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.name])
    rng = torch.frombuffer(bytearray.fromhex(state["torch_rng"]), dtype=torch.uint8)
    torch.set_rng_state(rng)
