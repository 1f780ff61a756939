"""What one topology update did, to be shown and written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smet.mask import combined_digest


@dataclass
class UpdateReport:
    """What one topology update did. ``pruned`` and ``grown`` count tiles over all layers of this rank."""

    step: int
    update: int
    fraction: float
    pruned: int = 0
    grown: int = 0
    recycled: int = 0
    """Pruned tiles that had been grown at the update just before."""
    unmoved: int = 0
    """Tiles that were to be replaced and stay: no exchange with others was found that keeps rows and columns as they
    are."""
    uneven: int = 0
    """Rows and columns of tiles, of each range, that still have more active ones or fewer than equal shares; counted
    where ``balance`` is ``towards``."""
    seconds: float = 0.0
    digest: str = ""
    density: dict[str, float] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    """Tiles grown by layer, of ``grown`` in all."""

    @staticmethod
    def merged(reports: Sequence[UpdateReport]) -> UpdateReport:
        """One report of all shards of a model: counts add up, the slowest rank's time counts."""
        first = reports[0]
        if len(reports) == 1:
            return first
        density: dict[str, list[float]] = {}
        moved: Counter[str] = Counter()
        for report in reports:
            moved.update(report.moved)
            for name, value in report.density.items():
                density.setdefault(name, []).append(value)
        return UpdateReport(
            first.step, first.update, first.fraction,
            pruned=sum(report.pruned for report in reports),
            grown=sum(report.grown for report in reports),
            recycled=sum(report.recycled for report in reports),
            unmoved=sum(report.unmoved for report in reports),
            uneven=sum(report.uneven for report in reports),
            seconds=max(report.seconds for report in reports),
            digest=combined_digest({str(shard): report.digest for shard, report in enumerate(reports)}),
            density={name: sum(values) / len(values) for name, values in density.items()},
            moved=dict(moved),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """One line of ``topology.jsonl``."""
        return dict(vars(self))
