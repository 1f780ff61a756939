"""How every figure of the project looks: what a colour stands for, how lines are smoothed, how a picture is written.

Colours are chosen so that they stay apart in simulated deuteranopia and protanopia, and dark enough for thin lines on
white. SMET has the only strong one.
"""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMET = "#0057D8"
COLORS: Mapping[str, str] = {
    "smet": SMET,
    "naive": "#A63A0E",
    "warm-up": "#BA861A",
    "local": "#9B86BD",
    "static": "#858585",
    "dense": "#262626",
}
"""What a line shows, to its colour: ``warm-up`` and ``local`` are regrown weights with one remedy alone."""
INK, MUTED, GRID, BACKGROUND = "#262626", "#6B6B6B", "#E6E6E6", "#C9C9C9"
"""Of words; of words that matter less; of lines that help to read; of lines that are there for comparison only."""

DASHES: Mapping[str, Any] = {"dense": (0, (5, 2)), "local": (0, (4, 1.2)), "static": "-"}
"""Line styles that go with colours, for those who print without any."""
STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

FAINT, BAND = 0.28, 0.14
"""Opacity of what was measured at every step, and of a standard deviation around a mean."""
DPI = 144
NAME_LENGTH = 40

_RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titlepad": 6, "legend.fontsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.7, "xtick.major.width": 0.7,
    "ytick.major.width": 0.7, "xtick.major.size": 3, "ytick.major.size": 3,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round", "legend.frameon": False,
    "legend.handlelength": 1.8, "legend.columnspacing": 1.6, "figure.facecolor": "white", "axes.facecolor": "white",
    "savefig.facecolor": "white", "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "agg.path.chunksize": 10000, "svg.hashsalt": "smet", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip
"""Names of runs are drawn as they are, with no ``$`` read as a formula: log axes need ``plain_ticks`` therefore."""


@contextmanager
def picture(path: Path, size: tuple[float, float], title: str, below: str = "") -> Iterator[Figure]:
    """A figure in the one style; what was drawn in the block is written to ``path`` at its end.

    Args:
        path: its suffix chooses the format.
        size: inches.
        title: what the figure says, in one sentence.
        below: of what it is drawn, in smaller letters.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(dict(_RC)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run's name in a script that the font lacks
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        _head(figure, title, below)
        settle(figure)
        _save(figure, path)


def _head(figure: Figure, title: str, below: str) -> None:
    """Title and the line below it, in a strip that the panels leave free."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(title, int(width / 0.1)) or [""]
    lower = textwrap.wrap(below, int(width / 0.072))
    top = 0.1
    for number, (text, large) in enumerate([*((line, True) for line in lines), *((line, False) for line in lower)]):
        top += 0.05 if number == len(lines) else 0.0
        look: dict[str, Any] = {"fontsize": 11, "fontweight": "bold"} if large else {"fontsize": 8.5, "color": MUTED}
        figure.text(0.1 / width, 1 - top / height, text, va="top", ha="left", in_layout=False, **look)
        top += 0.2 if large else 0.155
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, 0.0, 1.0, 1 - (top + 0.06) / height), h_pad=0.05, w_pad=0.06, hspace=0.05)  # type: ignore[call-arg]


def settle(figure: Figure) -> None:
    """Lay the panels out, then part the labels at ends of lines, which needs the panels' true heights."""
    from .labels import part

    engine = figure.get_layout_engine()
    assert engine is not None
    figure.align_ylabels()
    engine.execute(figure)
    figure.set_layout_engine("none")  # or it would be done again, and labels be where they fitted before
    for axis in figure.axes:
        part(axis)


def _save(figure: Figure, path: Path) -> None:
    """A reader sees the old picture or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_rendered(figure, path.suffix.lower()))
        os.replace(temporary, path)
    except OSError as error:  # under the name that the user knows
        raise OSError(error.errno, error.strerror, str(path)) from error


def _rendered(figure: Figure, suffix: str) -> bytes:
    # Without a date and version, the same numbers give the same bytes.
    metadata: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }  # fmt: skip
    raw = io.BytesIO()
    figure.savefig(raw, dpi=DPI, format=suffix[1:], metadata=metadata.get(suffix))
    if suffix != ".png":
        return raw.getvalue()
    from PIL import Image

    small = io.BytesIO()
    with Image.open(raw) as image:  # a third of the bytes, and nothing that an eye sees
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def line_of(kind: str, place: int = 0) -> dict[str, Any]:
    """Colour and line style of the ``place``-th line of its kind: the first has the kind's own, others shades of it."""
    color = COLORS[kind]
    if place == 0:
        return {"color": color, "linestyle": DASHES.get(kind, "-")}
    shades = (mixed(color, "#FFFFFF", 0.42), mixed(color, "#000000", 0.55), color)
    return {"color": shades[(place - 1) % 3], "linestyle": STYLES[place % len(STYLES)]}


def kind_of(method: str) -> str:
    """The kind of a run by its ``sparsity.method``."""
    if method.startswith("smet"):
        return "smet"
    known = {"dense": "dense", "static": "static", "set": "naive", "rigl": "naive", "": "static"}
    return known.get(method, "local")  # a colour that no run has otherwise


def mixed(color: str, other: str, share: float) -> str:
    """``color`` with ``share`` of ``other``, both ``#rrggbb``."""
    pairs = [(int(color[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in pairs)


def short(name: str) -> str:
    """A name that fits a legend; of a longer one, its beginning and its end."""
    half = NAME_LENGTH // 2 - 1
    return name if len(name) <= NAME_LENGTH else f"{name[:half]}...{name[-half:]}"


def plain_ticks(axis: Any, form: str = "{:g}") -> None:
    """Numbers as people write them along an ``axis.xaxis`` or ``axis.yaxis``."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_formatter(NullFormatter())


def band(axis: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
    """A standard deviation, or a range, around a line."""
    axis.fill_between(x, low, high, color=color, alpha=BAND, linewidth=0)
