"""Tensors that torch itself cut over ranks: what ``fully_shard`` (FSDP2) makes of parameters.

Each rank has a range of the first dimension, and operations on the whole may be collective. What changes each entry by
itself may work on the ranges; that is what ``own`` is for. The rest of the package sees plain tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet import agreement
from smet.errors import ConfigError


def is_cut(tensor: Any) -> bool:
    """Whether this is a ``DTensor``. Imports nothing: where there is one, its module is there."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is cut, as a live view; any other tensor as it is."""
    if not is_cut(tensor):
        return tensor
    cut: Any = tensor
    with torch.no_grad():  # else a copy in the graph
        part: Tensor = cut.detach().to_local()
    return part


def require_range(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is cut in a way of which this package knows no meaning.

    Args:
        name: of the tensor, in messages.

    Raises:
        ConfigError: it is cut over a mesh of several dimensions, whole or half summed on each rank, or kept on another
            device than that of the mesh.
    """
    from torch.distributed.tensor import Shard

    cut: Any = tensor
    mesh, placements = cut.device_mesh, cut.placements
    if mesh.ndim != 1:
        raise ConfigError(
            f"{name} is a DTensor over a mesh of {mesh.ndim} dimensions (hybrid sharding, or fully_shard over tensor"
            " parallelism), expected one; give fully_shard a mesh of one dimension"
        )
    if type(placements[0]) is not Shard:
        raise ConfigError(
            f"{name} is a DTensor with the placement {placements[0]}, expected a part on each rank, as fully_shard"
            " makes it; torch's tensor parallelism is not supported"
        )
    if own(tensor).device.type not in (mesh.device_type, "meta"):
        raise ConfigError(
            f"{name} is kept on {own(tensor).device.type} and computed with on {mesh.device_type}, which is not"
            " supported; leave out CPUOffloadPolicy"
        )


def own_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """This rank's part of a gradient.

    Raises:
        ConfigError: it is cut in another way than its parameter.
    """
    kinds = [getattr(one, "placements", None) for one in (param, grad)] if is_cut(param) or is_cut(grad) else []
    if kinds and kinds[0] != kinds[1]:
        told = ["a plain tensor" if kind is None else f"a DTensor with {kind}" for kind in kinds]
        raise ConfigError(
            f"the gradient of a parameter of shape {tuple(param.shape)} is {told[1]}, and the parameter {told[0]}: let"
            " backward() make gradients, after fully_shard"
        )
    return own(grad)


def zeros_beside(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of the shape of ``param``, cut as it is."""
    if is_cut(param):
        return torch.zeros_like(param.detach(), dtype=dtype)
    return torch.zeros(param.shape, dtype=dtype, device=param.device)


def zeros_over(mesh: Any, shape: Sequence[int]) -> Tensor:
    """fp32 zeros of ``shape``, the first dimension cut over the ranks of ``mesh``."""
    from torch.distributed.tensor import Shard, zeros

    made: Tensor = zeros(*shape, dtype=torch.float32, device_mesh=mesh, placements=[Shard(0)])
    return made


def of_all(tensor: Tensor, own: Any) -> list[Any]:
    """``own`` of every rank over which ``tensor`` is cut. Collective over them."""
    cut: Any = tensor
    group = cut.device_mesh.get_group()
    return agreement.of_all(own, None if dist.get_backend(group) == "fake" else group)


def of_first(tensor: Tensor, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the first of the ranks over which ``tensor`` is cut has beside what this one has. Collective over them.

    Args:
        own: of this rank, by name; values of names that several ranks have are taken for equal.
    """
    names = of_all(tensor, sorted(own))
    if all(one == names[0] for one in names):
        return {}
    cut: Any = tensor
    group = cut.device_mesh.get_group()
    sent: list[Any] = [{name: value.cpu() for name, value in own.items()}]
    dist.broadcast_object_list(sent, src=dist.get_global_rank(group, 0), group=group)
    return {name: value for name, value in sent[0].items() if name not in own}


def let_go(model: nn.Module) -> None:
    """Let modules that ``fully_shard`` serves give back what they gathered: their parameters are ranks' parts again.

    After a forward pass without a backward pass some are still whole, and not what optimizers hold.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
