"""Ranks that hold the same model have to decide alike: they compare what they decide from, and what came of it.

*Replicas* are such ranks. They are not the ranks over which an engine cuts one parameter: under
DistributedDataParallel every rank has the whole of every parameter, and all of them are replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smet.errors import ConfigError

WIDTH = 1024
"""Words in a row of the matrix as which ``fingerprint`` sees a vector: it adds up rows and columns."""


class MaskMismatchError(RuntimeError):
    """Ranks that must hold the same masks, or the same weights, do not."""


def default_replicas() -> dist.ProcessGroup | None:
    """All ranks of the job where torch.distributed runs several, else None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def usable(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """``group``, or None where it is this rank alone.

    Raises:
        ConfigError: this rank is not in it.
    """
    if group is None:
        return None
    if dist.get_rank(group) < 0:
        raise ConfigError("this rank is not in the group of replicas that it was given; give each rank its own group")
    return group if dist.get_world_size(group) > 1 else None


def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """Two int64 sums over the bits of ``tensors`` and their order; equal tensors give equal sums on every device.

    Integers are added exactly in any order, so it needs two passes at the speed of memory, and nobody waits.
    """
    found = torch.zeros(2, dtype=torch.int64)
    for tensor in tensors:
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = raw.numel() // (8 * WIDTH) * 8 * WIDTH
        if raw.data_ptr() % 8:  # a view that begins between two words
            raw = raw.clone()
        for words in (raw[:whole].view(torch.int64).view(-1, WIDTH), raw[whole:].long().view(1, -1)):
            # Odd factors, modulo 2**64: no bit of any sum is multiplied away.
            sums = [(line * (2 * torch.arange(line.numel(), device=line.device) + 1)).sum()
                    for line in (words.sum(0), words.sum(1))]  # fmt: skip
            found = found.to(raw.device) * 31 + torch.stack(sums)
    return found


def of_all(own: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """``own`` of every rank of ``group``, in its order; without a group of this one alone. Collective."""
    if group is None:
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, own, group=group)
    return gathered


def differing(own: Mapping[str, Any], group: dist.ProcessGroup | None) -> list[str]:
    """Keys whose values are not the same on all ranks of ``group``. Collective; the same list on every rank."""
    gathered = of_all(dict(own), group)
    keys = dict.fromkeys(key for one in gathered for key in one)
    return [key for key in keys if any(one.get(key) != gathered[0].get(key) for one in gathered)]


def raise_together(failure: ConfigError | None, group: dist.ProcessGroup | None) -> None:
    """Raise on every rank of ``group`` what stopped some of them. Collective; for when one of them is known to fail.

    Args:
        failure: of this rank, if it is one of those.

    Raises:
        ConfigError: the first rank's, on all of them; says on which ranks, where it is not all.
    """
    if group is None:
        if failure is not None:
            raise failure
        return
    everyones = of_all(None if failure is None else failure.problems, group)
    failed = [rank for rank, problems in enumerate(everyones) if problems is not None]
    if not failed:
        return
    names = ", ".join(str(dist.get_global_rank(group, rank)) for rank in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    where = "" if len(failed) == len(everyones) else f"; on rank {names}{more}"
    raise ConfigError([f"{text}{where}" for text in everyones[failed[0]]]) from failure


def require_same_decisions(own: Mapping[str, str], group: dist.ProcessGroup | None) -> None:
    """Refuse replicas that would decide differently. Collective.

    Raises:
        ConfigError: ``own`` differs between ranks; on every rank.
    """
    if found := differing(own, group):
        raise ConfigError(
            f"{', '.join(found)} differ between the ranks of torch.distributed, which are taken for replicas of one "
            "model; where they are not, say LocalStore(optimizer, replicas=None), or name the group of those that are"
        )


def require_same_result(
    masks: Mapping[str, str], tensors: Mapping[str, Iterable[Tensor]], group: dist.ProcessGroup | None
) -> None:
    """Compare masks, and weights with their state, over ``group``. Collective.

    Args:
        masks: digest of each layer's mask.
        tensors: what else must be equal, by layer.

    Raises:
        MaskMismatchError: they differ; on every rank.
    """
    if group is None:
        return
    own: dict[str, Any] = {f"mask of {name}": value for name, value in masks.items()}
    own |= {f"weights and moments of {name}": fingerprint(parts).tolist() for name, parts in tensors.items()}
    if found := differing(own, group):
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise MaskMismatchError(
            f"{shown} differ over the {dist.get_world_size(group)} ranks of one model after a topology update: average "
            "gradients over all of them (DistributedDataParallel), or say LocalStore(optimizer, replicas=None) where "
            "each rank trains a model of its own"
        )
