"""Checks that what must be equal on several ranks is equal, bit for bit, and stops the run where it is not."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.callbacks.base import Callback, Record
from pretrain.errors import ReplicaError
from pretrain.parallel.tensor import is_replicated

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

Key = tuple[str, int]
"""(name, tensor-parallel rank whose shard it is; -1 where all of them hold the same)."""


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Two sums over the bit pattern, the second weighted by position; exact, on any device."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    words = tensor.detach().reshape(-1).view(bits).long()
    weights = torch.arange(words.numel(), device=words.device) % 65521 + 1
    return int(words.sum()), int((words * weights).sum())


def replicas(trainer: Trainer) -> dict[Key, Any]:
    """Checksums of every tensor of this rank that another rank must hold too. Collective (mask gathers).

    Norms, and their master weights, are equal over tensor-parallel ranks; working weights over data-parallel
    ranks (below ZeRO-3) and, if tied, over the first and last stage; masks over data-parallel ranks.
    """
    shard = trainer.layout.tensor_rank
    found: dict[Key, Any] = {}
    for name, parameter in trainer.engine.model.named_parameters():
        whole = getattr(parameter, "ds_numel", parameter.numel()) == parameter.data.numel()
        if whole:
            found[name, -1 if is_replicated(parameter) else shard] = checksum(parameter.data)
        if is_replicated(parameter):
            fragment = trainer.store.fragment(parameter)
            if fragment.master.numel():
                end = fragment.start + fragment.master.numel()
                found[f"{name} (master weights {fragment.start} to {end})", -1] = checksum(fragment.master)
    for name, layer in trainer.topology.layers.items():
        found[f"{name}.mask", shard] = checksum(trainer.bank.bits(layer))
        if layer.closed is not None:
            found[f"{name}.closed", shard] = checksum(layer.closed)
    trainer.bank.release()
    return found


def differences(everyone: list[dict[Key, Any]]) -> list[str]:
    """What differs, and on which ranks; each rank's dictionary in order of ranks."""
    holders: dict[Key, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, sums in enumerate(everyone):
        for key, value in sums.items():
            holders[key][value].append(rank)
    found = []
    for (name, _), by_value in holders.items():
        if len(by_value) > 1:
            most, *others = sorted(by_value.values(), key=len, reverse=True)
            odd = sorted(rank for ranks in others for rank in ranks)
            found.append(f"{name} on rank {', '.join(map(str, odd))} differs from rank {', '.join(map(str, most))}")
    return found


class ConsistencyCallback(Callback):
    """Compares replicas every ``train.consistency_interval`` steps.

    Raises:
        ReplicaError: on every rank, with names and ranks.
    """

    name = "consistency"

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Compare if it is due."""
        interval = trainer.config.train.consistency_interval
        if not interval or trainer.step % interval or trainer.layout.world_size == 1:
            return
        found = differences(trainer.layout.gather_objects(replicas(trainer)))
        if found:
            raise ReplicaError(
                f"replicas differ after step {trainer.step}: {'; '.join(found[:4])}"
                f"{f' and {len(found) - 4} more' if len(found) > 4 else ''}; check those hosts' memory and software, "
                "then start the same command again to go on from the last checkpoint"
            )
