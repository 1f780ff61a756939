"""Keys and values of the tokens that a model has read, so that the next one costs no more than itself.

A family whose ``Model`` takes a ``Cache`` beside the tokens generates with it; of others the whole text is computed
again for every token.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn


class Kept:
    """What one layer keeps of at most ``room`` tokens."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take those of the next s tokens, each (b, k, s, d); returns those of all so far.

        Raises:
            ValueError: there is no room for them.
        """
        first, self.length = self.length, self.length + key.shape[2]
        if self.length > self.room:
            raise ValueError(f"a cache of {self.room} tokens was given {self.length}")
        if self._keys is None or self._values is None:
            self._keys, self._values = (one.new_empty(*one.shape[:2], self.room, one.shape[3]) for one in (key, value))
        self._keys[:, :, first : self.length] = key
        self._values[:, :, first : self.length] = value
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(one.nbytes for one in (self._keys, self._values) if one is not None)


Cache = list[Kept]
"""One of each layer."""


def empty(layers: int, room: int) -> Cache:
    """For a text of at most ``room`` tokens."""
    return [Kept(room) for _ in range(layers)]


def takes_cache(model: nn.Module) -> bool:
    """Whether ``model`` can be called with a cache."""
    return "cache" in inspect.signature(model.forward).parameters
