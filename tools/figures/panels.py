"""The panels of a picture of runs: which there are, what each shows, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import style
from .runs import Run, missing_memory
from .smoothing import extremes, smoothed, width_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_UPDATES = 60
"""More are marked along the bottom only, where lines over all panels would be a wall."""
DECADES = 2.0
"""Of a curve's values, from which on its axis is logarithmic."""
CROWD = 4
"""Runs; of more, only smoothed losses are drawn. Other curves of several runs are smoothed ones alone."""


@dataclass(frozen=True)
class Look:
    """How the lines of a run are drawn."""

    run: Run
    color: str
    linestyle: Any


@dataclass(frozen=True)
class Curve:
    """A panel of one value per step."""

    key: str
    """In metrics.jsonl."""
    name: str
    label: str
    """With its unit."""
    scale: float = 1.0
    noisy: bool = False
    """Whether it is smoothed."""
    from_zero: bool = False
    form: str = "{:g}"


CURVES = (
    Curve("lr", "learning rate", "learning rate", from_zero=True),
    Curve("grad_norm", "gradient norm", "gradient norm", noisy=True),
    Curve("tokens_per_second", "throughput", "throughput\n(tokens/s)", noisy=True, from_zero=True, form="{:,.0f}"),
    Curve("mfu", "MFU", "MFU (%)", scale=100.0, noisy=True, from_zero=True),
    Curve("memory_peak_fullest", "peak memory", "peak memory of\nfullest rank (GB)", scale=1e-9, from_zero=True),
)
MEMORY = "memory at rest"


@dataclass
class Plan:
    """What a picture of these runs will hold."""

    looks: list[Look]
    over: int
    """Steps that curves are smoothed over; 1 = they are not."""
    panels: dict[str, Callable[[Axes], None]] = field(default_factory=dict)
    """Below the losses, by name."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Panels, and runs in panels, that there is nothing to draw of: why."""
    frame: tuple[float, float, float] | None = None
    """Losses: lowest and highest in the frame, and the highest there is; None = all are shown."""

    @property
    def runs(self) -> list[Run]:
        """In the order in which they were given."""
        return [look.run for look in self.looks]

    @property
    def raw(self) -> bool:
        """Whether the values of every step are drawn."""
        return self.over == 1 or len(self.looks) <= CROWD


def plan(runs: Sequence[Run], over: int | None) -> Plan:
    """Colours, smoothing and panels for ``runs``.

    Args:
        over: steps to smooth over; None = as fits the longest run.
    """
    longest = max((run.steps for run in runs), key=lambda steps: steps[-1] - steps[0])
    made = Plan(_looks(runs), width_for(longest) if over is None else over)
    for curve in CURVES:
        lacking = [run for run in runs if all(value is None for value in run.series(curve.key)[1])]
        _note(made, curve.name, lacking, "not in metrics.jsonl")
        if len(lacking) < len(runs):
            made.panels[curve.name] = lambda axis, curve=curve: _curve(axis, made, curve)  # type: ignore[misc]
    _note(made, "tiles moved", [run for run in runs if not run.updates], "no topology updates")
    if any(run.updates for run in runs):
        made.panels["tiles moved"] = lambda axis: _moved(axis, made)
    if any(_falls(run) for run in runs):
        made.panels["density"] = lambda axis: _density(axis, made)
        _note(made, "density", [run for run in runs if not run.densities], "no topology updates")
    else:
        made.left_out["density"] = "; ".join(dict.fromkeys(map(_constant, runs)))
    bare = [run for run in runs if run.at_rest is None]
    _note(made, MEMORY, bare, " / ".join(sorted({missing_memory(run) for run in bare})))
    if len(bare) < len(runs):
        made.panels[MEMORY] = lambda axis: _memory(axis, made)
    _note(made, "validation loss", [run for run in runs if run.last("validation_loss") is None], "not measured")
    made.frame = _frame(made)
    return made


def _looks(runs: Sequence[Run]) -> list[Look]:
    seen: dict[str, int] = {}
    found = []
    for run in runs:
        kind = style.kind_of(run.method)
        found.append(Look(run, **style.line_of(kind, seen.get(kind, 0))))
        seen[kind] = seen.get(kind, 0) + 1
    return found


def _note(made: Plan, panel: str, lacking: Sequence[Run], why: str) -> None:
    if lacking:
        whose = "" if len(lacking) == len(made.looks) else f" of {', '.join(run.name for run in lacking)}"
        made.left_out[panel + whose] = why


def _falls(run: Run) -> bool:
    """Whether density changes with time."""
    return len({(low, high) for _, low, high in run.densities}) > 1


def _constant(run: Run) -> str:
    if not run.densities:
        return "no topology updates"
    _, low, high = run.densities[0]
    share = f"{100 * low:.3g} %" if low == high else f"{100 * low:.3g} to {100 * high:.3g} % by layer"
    return f"{share} throughout"


def losses(axis: Axes, made: Plan) -> None:
    """Training loss, measured and smoothed, and validation loss, of every run; updates and skipped steps marked."""
    several = len(made.looks) > 1
    for look in made.looks:
        steps, values = look.run.series("loss")
        faint = style.FAINT if not several else style.FAINT / 2 if made.raw else 0.0
        _draw(axis, look, steps, smoothed(steps, values, 1), made.over, faint)
        at, validated = look.run.series("validation_loss")
        if look.run.last("validation_loss") is not None:
            ink = look.color if several else style.INK
            axis.plot(
                at, smoothed(at, validated, 1), "-", marker="o", color=ink, markerfacecolor="white", markersize=4.5,
                markeredgewidth=1.3, linewidth=0.9, zorder=4,
            )  # fmt: skip
    axis.set_ylabel("loss (nats per token)")
    style.plain_ticks(axis.yaxis)
    if made.frame is not None:
        axis.set_ylim(*made.frame[:2])
    skipped = _skips(axis, made)
    rug = _rug(axis, made)
    axis.legend(handles=[*_names(made), *_meanings(made, skipped, rug)], loc="upper right", frameon=True,
                facecolor="white", edgecolor="none", framealpha=0.85)  # fmt: skip


def _draw(axis: Axes, look: Look, steps: Sequence[float], values: Any, over: int, faint: float) -> None:
    """A curve: as measured and faint below, unless ``faint`` is 0, and smoothed and strong on top."""
    if over > 1 and faint:
        axis.plot(*extremes(steps, values), color=look.color, alpha=faint, linewidth=0.8, zorder=2)
    marker = "." if len(steps) == 1 else None  # a line of one point is none
    axis.plot(
        steps, smoothed(steps, list(values), over), color=look.color, linestyle=look.linestyle, marker=marker, zorder=3
    )


def _nested(made: Plan, place: int) -> float:
    """Width of the ``place``-th line where several may be one: each is narrower than those below it."""
    return 1.4 + 1.4 * (len(made.looks) - 1 - place)


def _frame(made: Plan) -> tuple[float, float, float] | None:
    """Lowest and highest loss to show, and the highest there is, which is of the fall at the start; None where all of
    it can be shown without what comes later being small."""
    much = 1.5 if len(made.looks) > 1 else 2.5
    shown, everything, first = [], [], max(run.steps[-1] for run in made.runs) / 10
    for run in made.runs:
        steps, values = run.series("loss")
        curve = smoothed(steps, values, 1 if made.raw else made.over)
        shown += [float(value) for step, value in zip(steps, curve, strict=True) if step >= first]
        everything += [value for value in [*values, *run.series("validation_loss")[1]] if value is not None]
        shown += [value for value in run.series("validation_loss")[1] if value is not None]
    shown = [value for value in shown if math.isfinite(value)]
    if not shown or max(everything) - min(shown) <= much * (max(shown) - min(shown)):
        return None
    room = 0.08 * (max(shown) - min(shown))
    return (min(shown) - room, max(shown) + room, max(everything)) if room else None


def _names(made: Plan) -> list[Any]:
    """Legend entries of several runs."""
    from matplotlib.lines import Line2D

    if len(made.looks) == 1:
        return []
    return [
        Line2D([], [], color=look.color, linestyle=look.linestyle, label=style.short(look.run.name))
        for look in made.looks
    ]


def _meanings(made: Plan, skipped: bool, updates: bool) -> list[Any]:
    """Legend entries of what lines and marks mean."""
    from matplotlib.lines import Line2D

    color = made.looks[0].color if len(made.looks) == 1 else style.MUTED
    ink = style.INK if len(made.looks) == 1 else style.MUTED
    found = []
    if made.over > 1:
        if made.raw:
            found.append(Line2D([], [], color=color, alpha=0.45, linewidth=0.8, label="training loss, every step"))
        found.append(Line2D([], [], color=color, label=f"training loss, smoothed over {made.over:,} steps"))
    else:
        found.append(Line2D([], [], color=color, label="training loss"))
    if any(run.last("validation_loss") is not None for run in made.runs):
        found.append(Line2D([], [], color=ink, marker="o", markerfacecolor="white", markersize=4.5, linewidth=0.9,
                            markeredgewidth=1.3, label="validation loss"))  # fmt: skip
    if updates:
        found.append(Line2D([], [], color=color if len(made.looks) > 1 else style.MUTED, marker="|", linestyle="none",
                            markersize=7, label="topology update"))  # fmt: skip
    if skipped:
        found.append(Line2D([], [], color=ink, marker="x", linestyle="none", markersize=5, label="skipped step"))
    return found


def _skips(axis: Axes, made: Plan) -> bool:
    """Mark skipped steps at the top; whether there are any."""
    found = False
    for look in made.looks:
        steps = [row["step"] for row in look.run.rows if row.get("skipped")]
        if steps:
            found = True
            axis.plot(steps, [0.985] * len(steps), "x", color=look.color if len(made.looks) > 1 else style.INK,
                      markersize=5, transform=axis.get_xaxis_transform(), clip_on=False)  # fmt: skip
    return found


def _rug(axis: Axes, made: Plan) -> bool:
    """Mark topology updates along the bottom, a row for every run that has some; whether there are any."""
    updated = [look for look in made.looks if look.run.updates]
    if not updated:
        return False
    low, high = axis.get_ylim()
    row = 0.035
    axis.set_ylim(low - (high - low) * row * len(updated) / (1 - row * len(updated)), high)
    for place, look in enumerate(updated):
        steps = [update["step"] for update in look.run.updates]
        many = len(steps) > MANY_UPDATES
        axis.plot(
            steps, [row * (len(updated) - place - 0.5)] * len(steps), "|", color=look.color, markersize=6,
            markeredgewidth=0.5 if many else 1.1, alpha=0.5 if many else 1.0, zorder=4,
            transform=axis.get_xaxis_transform(),
        )  # fmt: skip
    return True


def mark_updates(axis: Axes, made: Plan) -> None:
    """Thin lines at the topology updates of a single run, unless there are too many."""
    if len(made.looks) == 1 and len(made.runs[0].updates) <= MANY_UPDATES:
        for update in made.runs[0].updates:
            axis.axvline(update["step"], color="#D8D8D8", linewidth=0.7, zorder=0)


def _curve(axis: Axes, made: Plan, curve: Curve) -> None:
    least, most, several = math.inf, 0.0, len(made.looks) > 1
    for place, look in enumerate(made.looks):
        steps, values = look.run.series(curve.key)
        scaled = [None if value is None else value * curve.scale for value in values]
        positive = [value for value in scaled if value is not None and value > 0]
        least, most = min([least, *positive]), max([most, *positive])
        if curve.noisy:
            _draw(axis, look, steps, smoothed(steps, scaled, 1), made.over, 0.0 if several else style.FAINT)
        else:
            axis.plot(steps, smoothed(steps, scaled, 1), color=look.color, linewidth=_nested(made, place))
    apart = ", " if "\n" in curve.label else ",\n"
    axis.set_ylabel(curve.label + (f"{apart}smoothed" if several and curve.noisy and made.over > 1 else ""))
    if curve.from_zero:
        axis.set_ylim(bottom=0)
    elif curve.noisy and least > 0 and math.log10(most / least) > DECADES:
        axis.set_yscale("log")
    style.plain_ticks(axis.yaxis, curve.form)


def _moved(axis: Axes, made: Plan) -> None:
    for place, look in enumerate(made.looks):
        steps = [update["step"] for update in look.run.updates]
        counts = [update["grown"] for update in look.run.updates]
        width = _nested(made, place)
        marker = "o" if len(steps) <= MANY_UPDATES else None
        axis.plot(steps, counts, "-", marker=marker, markersize=1.6 + width, color=look.color, linewidth=width)
    axis.set_ylim(bottom=0)
    style.plain_ticks(axis.yaxis, "{:,.0f}")
    axis.set_ylabel("tiles moved\n(per update)")


def _density(axis: Axes, made: Plan) -> None:
    for look in made.looks:
        if found := look.run.densities:
            steps = [step for step, _, _ in found]
            low, high = [100 * least for _, least, _ in found], [100 * most for _, _, most in found]
            style.band(axis, steps, low, high, look.color)
            for side in (low, high):
                axis.plot(steps, side, color=look.color, linestyle=look.linestyle, linewidth=1.1)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("density (%), lowest\nto highest layer")


def _memory(axis: Axes, made: Plan) -> None:
    """Bars per run: sparse layers at rest, before what dense AdamW would hold of them."""
    known = [(look, rest) for look in made.looks if (rest := look.run.at_rest) is not None]
    unit, name = max(((1e9, "GB"), (1e6, "MB"), (1e3, "kB")), key=lambda one: max(r[1] for _, r in known) >= one[0])
    most = max(max(rest) for _, rest in known) / unit
    for place, (look, (own, dense)) in enumerate(known):
        axis.barh(place, dense / unit, color="#E3E3E3", height=0.62)
        axis.barh(place, own / unit, color=look.color, height=0.62)
        end = own if own < 0.8 * dense else max(own, dense)
        axis.annotate(f"{100 * own / dense:.0f} % of dense", (end / unit, place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    several, room = len(made.looks) > 1, max(0.0, (3 - len(known)) / 2)
    axis.set_yticks(range(len(known)), [style.short(look.run.name) if several else "" for look, _ in known])
    axis.set_ylim(len(known) - 0.4 + room, -0.6 - room)
    axis.set_xlim(0, 1.2 * most)
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"sparse layers at rest ({name} per rank)")
