"""What a model and its optimizer hold, counted from live tensors, and what its products cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smet.bank import MaskBank
from smet.config import SmetConfig
from smet.linear import SparseLinear, sparse_layers
from smet.memory import bytes_held, masks_held
from smet.patterns import selects


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer, bank: MaskBank) -> dict[str, int]:
    """Bytes at rest, with the gradients of a step, the embeddings and the state inside of an optimizer's own objects.

    Returns:
        ``weights``, ``gradients``, ``state`` (moments, masters, ages, projectors), ``masks`` and ``total``.
    """
    seen: set[int] = set()
    held: dict[str, Iterable[Tensor]] = {
        "weights": model.parameters(),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "state": _tensors(list(optimizer.state.values())),
        "masks": masks_held(sparse_layers(model).values(), bank),
    }
    found = {kind: sum(bytes_held(tensor, seen) for tensor in tensors) for kind, tensors in held.items()}
    return {**found, "total": sum(found.values())}


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
