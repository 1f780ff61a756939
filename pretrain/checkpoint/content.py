"""What a checkpoint holds of a run: logical vectors, and the small state beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pretrain.checkpoint.vectors import LogicalVector, Vectors
from smet.bank import MaskBank
from smet.linear import SparseLinear, sparse_layers
from smet.store import ParameterStore

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


def vectors_of(model: torch.nn.Module, store: ParameterStore, bank: MaskBank) -> Vectors:
    """Live fragments of everything that training changes: loading into them restores the run.

    For a parameter ``p``: ``p`` (fp32 master), ``p/exp_avg``, ``p/exp_avg_sq`` and, if its weights can
    be regrown, ``p/birth``. For a sparse layer ``l``: ``l.mask``, the packed bits.
    """
    vectors: Vectors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fragment = store.fragment(parameter)
        for key, tensor in {"": fragment.master, **fragment.state}.items():
            vectors[f"{name}/{key}".rstrip("/")] = LogicalVector(tensor, fragment.start, fragment.total)
    for name, layer in sparse_layers(model).items():
        if not layer.is_full:
            vectors[f"{name}.mask"] = _mask_vector(layer, bank)
    return vectors


def _mask_vector(layer: SparseLinear, bank: MaskBank) -> LogicalVector:
    start, local = bank.fragment(layer)
    return LogicalVector(local, start, layer.grid.mask_bytes)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The small, plain state of a run; equal on all ranks."""
    return {
        "step": trainer.step,
        "consumed_samples": trainer.consumed_samples,
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
    trainer.topology.load_state_dict(state["topology"])
    for callback in trainer.callbacks:
        if callback.name in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.name])
    rng = torch.frombuffer(bytearray.fromhex(state["torch_rng"]), dtype=torch.uint8)
    torch.set_rng_state(rng)
