"""Names at the ends of lines, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP = "end label"
GAP, TEXT = 0.012, 0.05
"""From the panel's edge to where the thin line to a label begins, and to the label, in widths of the panel."""
LINE_HEIGHT = 1.25


def name_end(axis: Axes, y: float, text: str, color: str, bold: bool = False, left: bool = False) -> None:
    """Say at the edge what the line is that ends, or begins, at ``y``. ``part`` sees to it that it can be read."""
    made = axis.text(
        -TEXT if left else 1 + TEXT, 0.5, text, transform=axis.transAxes, color=color, va="center", fontsize=8,
        ha="right" if left else "left", linespacing=1.15, fontweight="bold" if bold else "normal",
    )  # fmt: skip
    made.set_gid(GROUP)
    made.set_label(repr(y))


def part(axis: Axes) -> None:
    """Put the labels of ``axis`` beside the ends of their lines, as near as they fit. The panel has its final size."""
    texts = [text for text in axis.texts if text.get_gid() == GROUP]
    if not texts:
        return
    figure = axis.figure
    points = float(axis.get_position().height * figure.get_figure(root=True).get_size_inches()[1] * 72)
    ends = [_height(axis, float(str(text.get_label()))) for text in texts]
    sizes = [(text.get_text().count("\n") + 1) * float(text.get_fontsize()) * LINE_HEIGHT / points for text in texts]
    for text, end, place in zip(texts, ends, apart(ends, sizes), strict=True):
        text.set_y(place)
        ways = [-GAP, 0.01 - TEXT] if text.get_position()[0] < 0 else [1 + GAP, 1 + TEXT - 0.01]
        axis.plot(ways, [end, place], transform=axis.transAxes, color=text.get_color(), linewidth=0.7, clip_on=False,
                  in_layout=False)  # fmt: skip


def _height(axis: Axes, y: float) -> float:
    """Where ``y`` stands on the axis: 0 at its bottom, 1 at its top."""
    pixels: Any = axis.transData.transform((axis.get_xlim()[1], y))
    return min(1.0, max(0.0, float(axis.transAxes.inverted().transform(pixels)[1])))


def apart(centers: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """New centres of intervals of these sizes, none overlapping another, in the order of ``centers``, moved together.

    Intervals that touch are one block, which stands where its members are off by nothing on average.
    """
    order = sorted(range(len(centers)), key=lambda i: (centers[i], i))
    blocks: list[list[int]] = []
    spans: list[tuple[float, float]] = []
    for i in order:
        block, low, high = [i], centers[i] - sizes[i] / 2, centers[i] + sizes[i] / 2
        while spans and low < spans[-1][1] - 1e-12:
            block = blocks.pop() + block
            spans.pop()
            low, high = _span(block, centers, sizes)
        blocks.append(block)
        spans.append((low, high))
    placed = [0.0] * len(centers)
    for block, (low, _) in zip(blocks, spans, strict=True):
        for i in block:
            placed[i] = low + sizes[i] / 2
            low += sizes[i]
    return placed


def _span(block: list[int], centers: Sequence[float], sizes: Sequence[float]) -> tuple[float, float]:
    offset, total = 0.0, 0.0
    for i in block:
        offset += centers[i] - (total + sizes[i] / 2)
        total += sizes[i]
    low = offset / len(block)
    return low, low + total
