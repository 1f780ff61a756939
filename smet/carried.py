"""Masks in the state dicts of a model whose ranks share them out: what DeepSpeed and others save is whole.

``SparseLinear`` puts its mask, or this rank's part of it, beside its values (``smet.loading``). Here is what goes
around that: ranks wait for each other, and what DeepSpeed makes of parameters and buffers alone gets the rest.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from smet import loading
from smet.bank import MaskBank
from smet.linear import sparse_layers


class _Around:
    """A hook of a model that knows its bank. Copies and pickles of a model take its hooks along: theirs do nothing."""

    def __init__(self, bank: MaskBank | None = None):
        self._bank = weakref.ref(bank) if bank is not None else None

    def __call__(self, model: nn.Module, *_: Any) -> None:
        bank = self._bank() if self._bank is not None else None
        if bank is not None:
            self.act(model, bank)

    def act(self, model: nn.Module, bank: MaskBank) -> None:
        """What there is to be done."""

    def __reduce__(self) -> tuple[type[_Around], tuple[()]]:
        return type(self), ()


class _Before(_Around):
    """Where whole masks are about to be gathered, all ranks have to be there."""

    def act(self, model: nn.Module, bank: MaskBank) -> None:
        shared = [layer for layer in sparse_layers(model).values() if layer.source is bank]
        if any(layer.values.numel() == layer.active * layer.grid.tile_size for layer in shared):
            bank.meet()


class _After(_Around):
    def act(self, model: nn.Module, bank: MaskBank) -> None:
        bank.release()


def watch_state_dicts(model: nn.Module, bank: MaskBank) -> list[Callable[[], None]]:
    """Let ``model.state_dict()`` wait for the ranks of ``bank``, and free what it gathered.

    Returns:
        What ends that.
    """
    return [
        model.register_state_dict_pre_hook(_Before(bank)).remove,
        model.register_state_dict_post_hook(_After(bank)).remove,
    ]


def complete(model: nn.Module, bank: MaskBank, state: dict[str, Any] | None) -> None:
    """Put into a state dict of parameters and buffers what a sparse layer has beside them. Collective.

    Args:
        state: by the names of ``model``; None on ranks that do not get one.
    """
    for name, layer in sparse_layers(model).items():
        prefix = f"{name}."
        bits = None if layer.is_full else bank.bits(layer)
        if state is not None and prefix + "values" in state:
            if bits is not None:
                state[prefix + "mask"] = bits.detach().cpu().clone()
            loading.describe(layer, state, prefix)
    bank.release()
