"""A picture of rows: what was measured of each at every seed, its mean, and one standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..figures import style
from .statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANING = "small dots: seeds; line: one standard deviation; full circle: p < 5 %"


@dataclass(frozen=True)
class Row:
    """One row, from above."""

    name: str
    values: Sequence[float]
    """One of each seed, at least one."""
    color: str
    significant: bool


def draw_rows(axis: Axes, drawn: Sequence[Row]) -> None:
    """Draw them, with their names at the left."""
    for place, row in enumerate(drawn):
        spread = Spread.of(row.values)
        assert spread is not None
        axis.errorbar(spread.mean, place, xerr=spread.deviation or 0.0, color=row.color, elinewidth=1.6, zorder=3)
        axis.plot(row.values, [place] * len(row.values), ".", color=style.MUTED, markersize=3.5, zorder=5)
        axis.plot(spread.mean, place, "o", markersize=7, zorder=4, markeredgecolor=row.color, markeredgewidth=1.6,
                  color=row.color if row.significant else "white")  # fmt: skip
    axis.set_yticks(range(len(drawn)), [row.name for row in drawn])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(drawn) - 0.4, -0.6)
    axis.grid(False)
    axis.grid(True, axis="x")
    axis.spines["left"].set_visible(False)
