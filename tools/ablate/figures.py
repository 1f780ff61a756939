"""The figures of the page, as PNG: one message each, which ``messages`` takes from the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import style
from ..figures.labels import name_end
from . import messages
from .dots import MEANING, Row, draw_rows
from .kinds import kind, method_looks, variant_looks
from .statistics import Difference, Spread
from .tables import ratio
from .view import LATER, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OFFSETS = ("-10", "-5", "before", "after", "1", "2", "3", "5", "8", "12", "20", "30")
ALIKE = 0.15
"""Lines of one kind that are nowhere further apart than this, as a natural logarithm, share a label."""


@dataclass(frozen=True)
class Made:
    """A figure of the page."""

    path: Path
    message: str


def draw(view: View, prefix: Path) -> dict[str, Made]:
    """Write every figure for which there are numbers; name of each to its file and its message."""
    makers: dict[str, Callable[[View, Path], str | None]] = {
        "branches": _branches, "update": _around_update, "spikes": _spikes, "changes": _changes,
        "curves": _curves, "density": _density, "losses": _losses,
    }  # fmt: skip
    prefix.parent.mkdir(parents=True, exist_ok=True)
    files = {name: prefix.with_name(f"{prefix.name}-{name}.png") for name in makers}
    found = {name: maker(view, files[name]) for name, maker in makers.items()}
    return {name: Made(files[name], message) for name, message in found.items() if message is not None}


def _line(
    axis: Axes, x: Sequence[float], spreads: Sequence[Spread | None], look: Mapping[str, Any], band: bool = False,
    **more: Any,
) -> list[float]:  # fmt: skip
    """Means as a line, one standard deviation as a band; returns the means."""
    points = [(at, spread) for at, spread in zip(x, spreads, strict=True) if spread is not None]
    at, means = [at for at, _ in points], [spread.mean for _, spread in points]
    axis.plot(at, means, **{**look, **more})
    if band and points:
        low = [spread.mean - (spread.deviation or 0.0) for _, spread in points]
        high = [spread.mean + (spread.deviation or 0.0) for _, spread in points]
        style.band(axis, at, low, high, look["color"])
    return means


def _branches(view: View, path: Path) -> str | None:
    groups = view.branch_groups()
    if not groups:
        return None
    names = list(dict.fromkeys(n for some in groups.values() for branch in some for n in branch["excess"]))
    looks, roles = variant_looks(view, names), view.roles.get("branches") or {}
    leading = {roles.get("naive"), roles.get("remedied")}
    message = messages.branches(view)
    below = 'loss on one held-out batch over that of the branch with "no update"; band: one standard deviation'
    with style.picture(path, (3.0 * max(2, len(groups)) + 0.4, 4.1), message, below) as figure:
        axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axis, ((size, base, density), some) in zip(axes, groups.items(), strict=True):
            for name in (name for name in looks if name in some[0]["excess"]):
                steps = sorted(some[0]["excess"][name])
                spreads = [view.branch_spread(some, name, step) for step in steps]
                wide = 2.1 if name in leading else 1.3
                _line(axis, steps, spreads, looks[name], band=name in leading, label=name, linewidth=wide,
                      zorder=4 if name in leading else 3)  # fmt: skip
            axis.axhline(0, color=style.MUTED, linewidth=0.7, zorder=1)
            axis.set_title(f"{size}, d = {density:g}, {base} state, {len(some)} branches")
            axis.set_xlabel("steps after the topology update")
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(0, steps[-1])
            ticks = [step for step in (0, 1, 3, 10, 30, 100, 300, 1000) if step <= steps[-1]]
            axis.set_xticks(ticks, [str(step) for step in ticks])
            axis.minorticks_off()
        axes[0].set_ylabel('loss over "no update" (nats per token)')
        handles, labels = _widest(axes)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return message


def _widest(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Legend entries of the panel that has most lines."""
    return max((axis.get_legend_handles_labels() for axis in axes), key=lambda entries: len(entries[1]))


def _sampled(view: View) -> tuple[str, float, list[str]] | None:
    """(size, density, methods) of which most was run."""
    if view.main_density is None or not view.sizes:
        return None
    size = view.sizes[0]
    return size, view.main_density, [m for m in view.methods(size, view.main_density) if m not in view.dense_methods]


def _around_update(view: View, path: Path) -> str | None:
    chosen = _sampled(view)
    if chosen is None:
        return None
    size, density, names = chosen
    x = [0.0 if o == "before" else 0.3 if o == "after" else float(o) for o in OFFSETS]
    static, leading = view.roles.get("static"), [view.roles.get("naive"), view.roles.get("remedied")]
    rise = view.rise_over_static if static in names else view.rise
    curves = {
        name: [Spread.of([0.0]) if o == "before" else view.spread(rise(o), name, size, density) for o in OFFSETS]
        for name in names
        if name != static
    }
    shown = {name: spreads for name, spreads in curves.items() if spreads[-1] is not None or name in leading}
    if not any(spread is not None for spreads in shown.values() for spread in spreads[3:]):
        return None
    looks, message = method_looks(view, names), messages.update(view, size, density)
    others = [name for name in shown if name not in leading]
    with style.picture(path, (8.0, 4.0), message, _around_update_below(view, size, density, len(others))) as figure:
        axis = figure.subplots()
        for name in others:
            _line(axis, x, shown[name], {"color": style.BACKGROUND, "linewidth": 1.0, "zorder": 2})
        for name in filter(None, leading):
            if name in shown:
                ends = _line(axis, x, shown[name], looks[name], band=True, linewidth=2.2, zorder=4)
                name_end(axis, ends[-1], name, looks[name]["color"], bold=True)
        axis.axhline(0, color=style.COLORS["static"], linewidth=1.3, zorder=3)
        if static in names:
            name_end(axis, 0.0, str(static), style.COLORS["static"])
        axis.axvline(0, color=style.MUTED, linewidth=0.7, zorder=1)
        axis.annotate("topology update", (0, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), va="top",
                      textcoords="offset points", color=style.MUTED)  # fmt: skip
        axis.set_xlim(x[0], x[-1])
        axis.set_xlabel("steps from the topology update")
        over = "\nover the static run" if static in names else ""
        axis.set_ylabel(f"held-out loss since the update{over} (nats per token)")
    return message


def _around_update_below(view: View, size: str, density: float, others: int) -> str:
    said = f"{size}, d = {density:g}; means over updates and seeds, band: one standard deviation over seeds"
    said += f"; thin grey: {others} other methods" if others else ""
    fall = view.spread(view.rise(OFFSETS[-1]), view.roles.get("static"), size, density)
    if fall is None:
        return said
    return f"{said}; the loss itself changes by {fall.mean:+.3f} nats within these {OFFSETS[-1]} steps"


def _spikes(view: View, path: Path) -> str | None:
    chosen = _sampled(view)
    if chosen is None:
        return None
    size, density, names = chosen
    found = messages.risen(view, size, density, names)
    if not found:
        return None
    looks, message = method_looks(view, names), messages.spikes(found)
    order = sorted(found, key=lambda name: -found[name].mean)
    below = f"{size}, d = {density:g}; {MEANING}"
    with style.picture(path, (8.0, 1.3 + 0.24 * len(order)), message, below) as figure:
        axis = figure.subplots()
        draw_rows(axis, [
            Row(name, list(view.by_seed(view.rise_over_static(), name, size, density).values()), looks[name]["color"],
                found[name].significant)
            for name in order
        ])  # fmt: skip
        axis.axvline(0, color=style.COLORS["static"], linewidth=1.3, zorder=1)
        for label, name in zip(axis.get_yticklabels(), order, strict=True):
            if name == view.roles.get("remedied"):
                label.set_color(style.SMET)
                label.set_fontweight("bold")
        axis.set_xlabel(f"rise of the held-out loss in {LATER} steps, over the static run (nats per token)")
    return message


def _changes(view: View, path: Path) -> str | None:
    chosen = _sampled(view)
    if chosen is None:
        return None
    size, density, names = chosen
    ages = sorted({row["age"] for cell in view.runs for row in cell.get("changes") or []})
    curves = {
        name: [view.spread(lambda cell, a=age: ratio(cell, a), name, size, density) for age in ages] for name in names
    }
    known = {name: spreads for name, spreads in curves.items() if any(spread is not None for spread in spreads)}
    if not known:
        return None
    first = {name: spreads[0] for name, spreads in known.items() if spreads[0] is not None}
    looks, message = method_looks(view, list(known)), messages.changes(view, first, ages[0])
    leading = {view.roles.get("naive"), view.roles.get("remedied")}
    below = f"{size}, d = {density:g}; root mean square change in a step, averaged over updates and seeds; log scale"
    with style.picture(path, (8.0, 4.4), message, below) as figure:
        axis = figure.subplots()
        for name in known:
            bold = name in leading
            _line(axis, ages, known[name], looks[name], marker="o", markersize=4 if bold else 2.5,
                  linewidth=2.4 if bold else 1.2, zorder=4 if bold else 3)  # fmt: skip
        for group in _alike({name: known[name] for name in looks if name in known}, looks):
            start = next(spread.mean for spread in known[group[0]] if spread is not None)
            name_end(axis, start, ",\n".join(group), looks[group[0]]["color"], bold=group[0] in leading, left=True)
        axis.axhline(1, color=style.MUTED, linewidth=0.9, zorder=1)
        axis.annotate("as far as the others", (0, 1), xycoords=("axes fraction", "data"), xytext=(4, 3),
                      textcoords="offset points", color=style.MUTED)  # fmt: skip
        axis.yaxis.tick_right()
        axis.yaxis.set_label_position("right")
        axis.spines["left"].set_visible(False)
        axis.spines["right"].set_visible(True)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axis.set_xticks(ages, [str(age) for age in ages])
        axis.minorticks_off()
        axis.set_xlabel("age of the regrown weights (steps)")
        axis.set_ylabel("change of regrown weights\nover that of all others")
    return message


def _alike(curves: Mapping[str, Sequence[Spread | None]], looks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Names of lines that lie on each other, together."""
    groups: list[list[str]] = []
    for name, spreads in curves.items():
        for group in groups:
            pairs = [(a, b) for a, b in zip(curves[group[0]], spreads, strict=True) if a is not None and b is not None]
            if pairs and all(a.mean > 0 < b.mean and abs(math.log(a.mean / b.mean)) < ALIKE for a, b in pairs):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _curves(view: View, path: Path) -> str | None:
    chosen = _sampled(view)
    if chosen is None:
        return None
    _, density, _ = chosen
    message = messages.curves(view, density)
    names = [name for role in ("dense", "static", "naive", "remedied") if (name := view.roles.get(role))]
    if not names:
        return None
    looks = method_looks(view, names)
    below = "mean over seeds, band: one standard deviation; the first steps, alike for all, lie above the frame"
    with style.picture(path, (4.6 * max(2, len(view.sizes)), 3.9), message, below) as figure:
        axes = figure.subplots(1, len(view.sizes), squeeze=False)[0]
        for axis, size in zip(axes, view.sizes, strict=True):
            late: list[float] = []
            for name in names:
                rate = view.best_dense_rate(size) if name == view.roles.get("dense") else None
                curves = [cell["loss_curve"] for cell in view.cells(name, size, density, rate)]
                steps = [point[0] for point in curves[0]] if curves else []
                spreads = [Spread.of([curve[place][1] for curve in curves]) for place in range(len(steps))]
                cured = _cured(view, name)
                means = _line(axis, steps, spreads, looks[name], band=True, linewidth=2.2 if cured else 1.5,
                              zorder=4 if cured else 3)  # fmt: skip
                if means:
                    late += means[4:] or means
                    said = f"{name}, lr {rate:g}" if rate is not None else name
                    name_end(axis, means[-1], f"{said}: {means[-1]:.2f}", looks[name]["color"], cured)
            if late:
                axis.set_ylim(min(late) - 0.05, max(late) + 0.05)
            axis.set_title(f"{size}, d = {density:g}")
            axis.set_xlabel("optimizer step")
        axes[0].set_ylabel("training loss (nats per token)")
    return message


def _cured(view: View, name: str) -> bool:
    return name == view.roles.get("remedied")


def _density(view: View, path: Path) -> str | None:
    roles, places = ("static", "naive", "remedied", "swept"), sorted(view.densities)
    names = [name for role in roles if (name := view.roles.get(role))]
    if len(places) < 2:
        return None
    looks, message = method_looks(view, names), messages.density(view)
    below = (
        "final validation losses, seed by seed minus those of the dense model at its best learning rate; bar: one "
        "standard deviation over seeds, where there are several"
    )
    with style.picture(path, (8.0, 3.9), message, below) as figure:
        axes = figure.subplots(1, len(view.sizes), sharey=True, squeeze=False)[0]
        for axis, size in zip(axes, view.sizes, strict=True):
            for place, name in enumerate(names):
                spreads = [messages.over_dense(view, name, size, density) for density in places]
                shift = 0.09 * (place - (len(names) - 1) / 2)
                points = [(at + shift, s) for at, s in enumerate(spreads) if s is not None]
                if points:
                    axis.errorbar(
                        [at for at, _ in points], [s.mean for _, s in points], [s.deviation or 0.0 for _, s in points],
                        marker="o", markersize=6 if _cured(view, name) else 4.5, elinewidth=1.1, capsize=0,
                        linewidth=2.2 if _cured(view, name) else 1.2, label=name, zorder=4 if _cured(view, name) else 3,
                        **looks[name],
                    )  # fmt: skip
            axis.axhline(0, zorder=1, linewidth=1.2, label="dense at its best rate", color=style.COLORS["dense"],
                         linestyle=style.DASHES["dense"])  # fmt: skip
            axis.set_xticks(range(len(places)), [f"{density:g}" for density in places])
            axis.set_xlim(-0.4, len(places) - 0.6)
            axis.set_xlabel("density")
            axis.set_title(f"{size} (dense: lr {rate:g})" if (rate := view.best_dense_rate(size)) else size)
        axes[0].set_ylabel("validation loss minus dense\n(nats per token)")
        handles, labels = _widest(axes)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return message


def _losses(view: View, path: Path) -> str | None:
    """Where masks stay there is no update to look at: the losses themselves."""
    chosen = None if view.updated else _sampled(view)
    if chosen is None:
        return None
    size, density, _ = chosen
    methods: Mapping[str, Any] = view.matrix.get("methods") or {}
    losses = {name: view.by_seed("validation_loss", name, size, density) for name in view.methods(size, density)}
    message = messages.losses(losses)
    with style.picture(path, (8.0, 1.4 + 0.3 * len(losses)), message, MEANING) as figure:
        axis = figure.subplots()
        first = next(iter(losses.values()))
        draw_rows(axis, [
            Row(name, list(found.values()), style.COLORS[kind(methods.get(name) or {})],
                bool((over := Difference.of(found, first)) and over.significant and found is not first))
            for name, found in losses.items()
        ])  # fmt: skip
        axis.set_xlabel("validation loss (nats per token)")
    return message
