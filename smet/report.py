"""What ``sparsify`` made of a model: how much of it became sparse, what did not, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from smet.candidates import LeftDense
from smet.linear import SparseLinear

SHOWN = 3
"""Names of modules that a line of the report gives in full."""


@dataclass
class SparsifyReport:
    """The result of one ``sparsify``. ``str(report)`` is what was printed."""

    model: nn.Module
    """The model that was given, changed in place."""
    layers: dict[str, SparseLinear]
    """The layers that this call made sparse, by module name."""
    weights: int
    """Elements of the model's matrix weights: parameters of two or more dimensions, counted as if all were dense."""
    sparse_weights: int
    """Those of them that are in sparse layers, active or not, earlier calls' included."""
    active_weights: int
    """Those of them that are active."""
    left_dense: list[LeftDense] = field(default_factory=list)
    """Every module whose matrix weights stay dense, with the reason."""
    warnings: list[str] = field(default_factory=list)
    """What is probably not meant, one line each."""

    @property
    def share(self) -> float:
        """Fraction of the model's matrix weights that are in sparse layers."""
        return self.sparse_weights / max(1, self.weights)

    def __str__(self) -> str:
        density = self.active_weights / max(1, self.sparse_weights)
        layers = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'}"
        lines = [
            f"smet: {layers} made sparse; {self.share:.0%} of the model's {self.weights:,} matrix weights are in"
            f" sparse layers, {self.active_weights:,} of them active (density {density:.4g})"
        ]
        lines += [f"smet: left dense: {line}" for line in grouped(self.left_dense)]
        return "\n".join(lines + [f"smet: warning: {line}" for line in self.warnings])

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"a SparsifyReport has no '{name}'; the model that was made sparse is its .model")


def grouped(left: Iterable[LeftDense]) -> list[str]:
    """One line for all modules of one class and reason, the heaviest first."""
    groups: dict[tuple[str, str], list[LeftDense]] = {}
    for one in left:
        groups.setdefault((one.kind, one.reason), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: -sum(one.weights for one in item[1]))
    lines = []
    for (kind, reason), ones in ordered:
        count = "1 layer" if len(ones) == 1 else f"{len(ones)} layers"
        weights = sum(one.weights for one in ones)
        lines.append(f"{count} of class {kind} ({weights:,} weights), {reason}: {named([one.name for one in ones])}")
    return lines


def named(names: list[str]) -> str:
    """The first names of a list, and how many follow."""
    shown = [name or "the model itself" for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
