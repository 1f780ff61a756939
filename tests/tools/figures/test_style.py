"""The one style: colours that everybody can tell apart, labels that do not overlap, smoothing that says what it is."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest

from tools.figures import labels, style
from tools.figures.labels import apart, name_end
from tools.figures.smoothing import extremes, smoothed, width_for

Triple = tuple[float, float, float]
SIGHTS: dict[str, tuple[Triple, Triple, Triple]] = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
}
"""Linear RGB to what such an eye sees of it, complete. Source: Machado, Oliveira and Fernandes 2009, table of 1.0."""
WHITE = "#FFFFFF"


def linear(color: str) -> Triple:
    values = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return red, green, blue


def through(matrix: tuple[Triple, Triple, Triple], rgb: Triple) -> Triple:
    x, y, z = (sum(weight * value for weight, value in zip(row, rgb, strict=True)) for row in matrix)
    return x, y, z


def lab(rgb: Triple) -> Triple:
    """CIE 1976 L*a*b* under D65."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    x, y, z = (value / white for value, white in zip(through(to_xyz, rgb), (0.9505, 1.0, 1.089), strict=True))
    a, b, c = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * b - 16, 500 * (a - b), 200 * (b - c)


def distance(one: str, other: str, sight: str) -> float:
    clipped = [
        tuple(min(1.0, max(0.0, value)) for value in through(SIGHTS[sight], linear(color))) for color in (one, other)
    ]
    return math.dist(*(lab(color) for color in clipped))  # type: ignore[arg-type]


def contrast(color: str) -> float:
    """With white, as WCAG has it: 3 is what it asks of graphics."""
    red, green, blue = linear(color)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_stay_apart_in_every_eye(sight: str) -> None:
    """2.3 is a difference that is just seen; thin lines need many times that."""
    for one, other in itertools.combinations(style.COLORS, 2):
        assert distance(style.COLORS[one], style.COLORS[other], sight) > 20, (one, other)
    for kind, color in style.COLORS.items():
        assert kind == "smet" or distance(style.SMET, color, sight) > 35, kind


def test_the_simulation_knows_what_such_eyes_confuse() -> None:
    """Red and green of one lightness, which a test that cannot fail would let pass."""
    assert distance("#C0504D", "#7F7F34", "usual") > 50
    assert distance("#C0504D", "#7F7F34", "deuteranopia") < 10


def test_thin_lines_can_be_seen_on_white() -> None:
    assert all(contrast(color) >= 3 for color in (*style.COLORS.values(), style.INK, style.MUTED))
    assert contrast(style.BACKGROUND) < 2 < contrast(style.MUTED)  # the background stays behind


@pytest.mark.parametrize("kind", style.COLORS)
def test_lines_of_one_kind_are_told_apart_by_shade_or_dashes(kind: str) -> None:
    looks = [style.line_of(kind, place) for place in range(8)]
    assert looks[0]["color"] == style.COLORS[kind]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 8


def test_only_smet_has_the_colour_of_smet() -> None:
    kinds = {
        method: style.kind_of(method) for method in ("dense", "static", "set", "rigl", "gmp", "granet", "", "mine")
    }
    assert "smet" not in kinds.values()
    assert style.kind_of("smet") == style.kind_of("smet-rigl") == "smet"


def test_intervals_are_moved_apart_and_no_further() -> None:
    assert apart([0.1, 0.5, 0.9], [0.1, 0.1, 0.1]) == [0.1, 0.5, 0.9]
    assert apart([0.5, 0.5], [0.2, 0.2]) == pytest.approx([0.4, 0.6])
    order = random.Random(0)
    for _ in range(50):
        centers = [order.random() for _ in range(9)]
        sizes = [0.02 + 0.1 * order.random() for _ in centers]
        placed = apart(centers, sizes)
        ranked = sorted(range(9), key=lambda i: centers[i])
        for below, above in itertools.pairwise(ranked):
            assert placed[above] - placed[below] >= (sizes[above] + sizes[below]) / 2 - 1e-9


def test_labels_of_lines_that_end_together_do_not_overlap(tmp_path: Path) -> None:
    """In the picture that is written: a run's name with a dollar sign is no formula there."""
    ends = {"a $b$": 1.0, "two\nlines": 1.001, "c": 1.002, "far": 9.0}
    with style.picture(tmp_path / "a.svg", (4, 2.4), "a title that does not fit into one line of so small a picture",
                       "below") as figure:  # fmt: skip
        axis = figure.subplots()
        for name, end in ends.items():
            axis.plot([0, 1], [0, end])
            name_end(axis, end, name, style.INK)
        axis.set_ylim(0, 10)
    texts = [text for text in axis.texts if text.get_gid() == labels.GROUP]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 4
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = figure.bbox
    assert all(box.x1 <= inside.x1 and box.y0 >= 0 and box.y1 <= inside.y1 for box in boxes)
    assert "a $b$" in (tmp_path / "a.svg").read_text()


def test_smoothing_is_the_mean_of_the_steps_around() -> None:
    steps = [1, 2, 3, 4, 6, 10, 11]
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for over in (1, 2, 3, 4, 7):
        for at, mean in zip(steps, smoothed(steps, values, over), strict=True):
            around = [v for s, v in zip(steps, values, strict=True) if at - over / 2 < s <= at + over / 2]
            assert mean == pytest.approx(sum(around) / len(around))
    assert list(smoothed(steps, values, 1)) == values


def test_a_long_curve_keeps_its_spikes_and_what_is_not_smoothed_is_not_touched() -> None:
    values = [1e-3 + 1e-6 * (n % 7) for n in range(50_000)]
    values[31_234], values[7] = 5.0, math.nan
    steps, thinned = extremes(range(50_000), values)
    assert len(steps) == len(thinned) <= 3000 and max(thinned) == 5.0 and steps[list(thinned).index(5.0)] == 31_234
    assert all(before < after for before, after in itertools.pairwise(steps))
    assert list(smoothed(range(7), [1e-3] * 7, 1)) == [1e-3] * 7
    assert extremes([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_a_run_that_diverged_is_not_smoothed_over() -> None:
    curve = smoothed([1, 2, 3, 4], [1.0, None, None, 2.0], 3)
    assert curve[0] == 1.0 and curve[3] == 2.0 and math.isnan(curve[1]) and math.isnan(curve[2])


@pytest.mark.parametrize(
    ("records", "every", "expected"), [(10, 1, 1), (300, 1, 10), (10_000, 1, 200), (100_000, 1, 2000), (50, 100, 500)]
)
def test_the_width_fits_the_run(records: int, every: int, expected: int) -> None:
    assert width_for(range(every, records * every + 1, every)) == expected
