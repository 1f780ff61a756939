"""The ``model`` section of a tiny model."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.models.family import FamilyConfig
from pretrain.rules import below


@dataclass(kw_only=True)
class TinyConfig(FamilyConfig):
    """Sizes under names of its own."""

    family: str = "tests.families.tiny:FAMILY"
    words: int
    """Number of token ids."""
    features: int
    """Of the stream."""
    inner: int
    """Features inside a feed-forward."""
    depth: int
    """Number of layers."""
    heads: int
    context: int = 64
    """Longest sequence in tokens."""
    spread: float = 0.05
    """Standard deviation of the initial weights."""
    gated: tuple[int, ...] = (0,)
    """Numbers of the layers whose feed-forward has a gate."""
    tied: bool = False
    """Whether the head uses the embedding's weights."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("model", self, 1, ("words", "features", "inner", "depth", "heads", "context"))
        if not self.spread > 0:
            found.append(f"model.spread is {self.spread}, expected a positive number")
        if not found and self.features % self.heads:
            found.append(f"model.features is {self.features}, expected a multiple of model.heads {self.heads}")
        return found
