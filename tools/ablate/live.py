"""What a model and its optimizer hold, counted from live tensors, and what its products cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smet.config import SmetConfig
from smet.linear import SparseLinear, sparse_layers
from smet.patterns import selects


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Iterable[Tensor] = ()) -> dict[str, int]:
    """Bytes at rest, with the gradients of a step, the embeddings and the state inside of an optimizer's own objects.

    Returns:
        ``weights``, ``gradients``, ``state`` (moments, masters, ages, projectors), ``masks`` and ``total``.
    """
    seen: set[int] = set()
    layers = sparse_layers(model).values()
    own = [bits for layer in layers for bits in (layer.mask, layer.closed) if bits is not None]
    found = {
        "weights": _sum(list(model.parameters()), seen),
        "gradients": _sum([p.grad for p in model.parameters() if p.grad is not None], seen),
        "state": _sum(list(_tensors(list(optimizer.state.values()))), seen),
        "masks": _sum([*own, *masks], seen),
    }
    return {**found, "total": sum(found.values())}


def _sum(tensors: Iterable[Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.numel() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += tensor.numel() * tensor.element_size()
    return total


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Plain tensors anywhere in ``value``: in tables, lists, tensor subclasses, and attributes of plain objects."""
    if isinstance(value, Tensor):
        if type(value) in (Tensor, nn.Parameter):
            yield value
        else:  # quantised state is a subclass of several tensors
            names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
            for name in names:
                yield from _tensors(getattr(value, name), depth + 1)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth + 1)
    elif depth < 4 and hasattr(value, "__dict__"):  # a projector
        yield from _tensors(vars(value), depth + 1)


def layer_flops(model: nn.Module, config: SmetConfig) -> dict[str, int]:
    """Active weights of the layers that may be sparse, and FLOPs per token of all products, the head's too."""
    active = others = 0
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            active += module.values.numel()
        elif isinstance(module, nn.Linear) and selects(name, config):
            active += module.weight.numel()
        elif isinstance(module, nn.Linear):
            others += module.weight.numel()
    return {"active_weights": active, "flops_per_token": 6 * (active + others)}
