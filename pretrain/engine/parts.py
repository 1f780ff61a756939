"""Where a step's time goes: its parts, each inside of a context of the caller's while somebody looks.

DeepSpeed and torch call no hooks there, so functions are replaced for that while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from smet import bank, kernels

Around = Callable[[str], AbstractContextManager[Any]]
"""From the name of a part to what it runs in."""

GRADIENTS, WEIGHTS = "gradient reduction", "weight gathers"


@contextmanager
def around_parts(engine: Any, around: Around) -> Iterator[None]:
    """While it is open, the parts of each step of the DeepSpeed ``engine`` run inside of ``around(part)``.

    Parts: ``forward``, ``backward``, ``expand``, ``compress``, ``mask gathers``, ``gradient reduction``,
    ``weight gathers``, ``optimizer``. They nest: a forward contains its products' expansions and gathers.
    """
    optimizer = engine.optimizer.optimizer
    waits = _Waits()
    with ExitStack() as stack:
        for owner, name, wrapped in (
            (kernels, "expand", _inside(kernels.expand, around, "expand")),
            (kernels, "compress", _inside(kernels.compress, around, "compress")),
            (bank.MaskBank, "bits", _inside(bank.MaskBank.bits, around, "mask gathers")),
            # What is waited for in a forward is ZeRO-3's weights; behind it, gradients; behind the optimizer, weights.
            (engine, "forward", waits.change(_inside(engine.forward, around, "forward"), WEIGHTS, GRADIENTS)),
            (engine, "backward", _inside(engine.backward, around, "backward")),
            (optimizer, "step", waits.change(_inside(optimizer.step, around, "optimizer"), None, WEIGHTS)),
            (torch._C._distributed_c10d.Work, "wait", waits.inside(torch._C._distributed_c10d.Work.wait, around)),
        ):
            _replace(stack, owner, name, wrapped)
        yield


class _Waits:
    """What a wait for a collective is for at this moment of a step."""

    def __init__(self) -> None:
        self.part = GRADIENTS

    def change(self, function: Callable[..., Any], first: str | None, then: str) -> Callable[..., Any]:
        """``function``; waits in it are for ``first``, where that is said, those behind it for ``then``."""

        def changing(*arguments: Any, **options: Any) -> Any:
            self.part = first or self.part
            result = function(*arguments, **options)
            self.part = then
            return result

        return changing

    def inside(self, wait: Callable[..., Any], around: Around) -> Callable[..., Any]:
        """``wait`` inside of what it is for."""

        def waiting(*arguments: Any) -> Any:
            with around(self.part):
                return wait(*arguments)

        return waiting


def _inside(function: Callable[..., Any], around: Around, part: str) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        with around(part):
            return function(*arguments, **options)

    return called


def _replace(stack: ExitStack, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put ``function`` in the place of ``owner``'s ``name`` until ``stack`` closes."""
    own = vars(owner)
    if name in own:
        stack.callback(setattr, owner, name, own[name])
    else:  # of its class
        stack.callback(delattr, owner, name)
    setattr(owner, name, function)
