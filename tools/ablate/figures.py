"""The figures of the page, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .statistics import Spread
from .tables import ratio
from .view import LATER, View

DPI = 110
OFFSETS = ("-10", "-5", "before", "after", "1", "2", "3", "5", "8", "12", "20", "30")


def draw(view: View, prefix: Path) -> dict[str, Path]:
    """Write every figure for which there are numbers; title of each to its file."""
    import matplotlib

    matplotlib.use("Agg")
    makers: dict[str, Callable[[View, Path], bool]] = {
        "branches": _branches, "update": _around_update, "spikes": _spikes, "changes": _changes,
        "curves": _curves, "density": _density,
    }  # fmt: skip
    prefix.parent.mkdir(parents=True, exist_ok=True)
    files = {name: prefix.with_name(f"{prefix.name}-{name}.png") for name in makers}
    return {name: files[name] for name, maker in makers.items() if maker(view, files[name])}


def _plot() -> Any:
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> bool:
    # Without a date and version, the same numbers give the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    _plot().close(figure)
    return True


def _line(
    axis: Any, x: Sequence[float], spreads: Sequence[Spread | None], label: str, color: str, band: bool = True,
    **style: Any,
) -> None:  # fmt: skip
    """Means as a line, one standard deviation as a band."""
    points = [(at, spread) for at, spread in zip(x, spreads, strict=True) if spread is not None]
    if not points:
        return
    at, means = [p[0] for p in points], [p[1].mean for p in points]
    deviations = [p[1].deviation or 0.0 for p in points]
    axis.plot(at, means, label=label, color=color, linewidth=1.6, **style)
    if not band:
        return
    low = [m - d for m, d in zip(means, deviations, strict=True)]
    high = [m + d for m, d in zip(means, deviations, strict=True)]
    axis.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)


def _branches(view: View, path: Path) -> bool:
    groups = view.branch_groups()
    if not groups:
        return False
    figure, axes = _plot().subplots(
        1, len(groups), figsize=(4.6 * len(groups), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(n for some in groups.values() for branch in some for n in branch["excess"]))
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    for axis, ((size, base, density), some) in zip(axes[0], groups.items(), strict=True):
        for name in (name for name in names if name in some[0]["excess"]):
            steps = sorted(step for step in some[0]["excess"][name])
            spreads = [view.branch_spread(some, name, step) for step in steps]
            dashed = name == (view.roles.get("branches") or {}).get("floor")
            _line(axis, steps, spreads, name, colors[name], linestyle="--" if dashed else "-")
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set_title(f"{size}, d = {density:g}, from {base} ({len(some)} branches)", fontsize=10)
        axis.set_xlabel("steps after the topology update")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(0)
        axis.set_xticks([0, 1, 3, 10, 30, 100], ["0", "1", "3", "10", "30", "100"])
    axes[0][0].set_ylabel('loss over "no update" (nats)')
    _legend(figure, axes[0][0], columns=2 * len(groups))
    return _save(figure, path)


def _sampled(view: View) -> tuple[str, float, list[str]] | None:
    """(size, density, methods) of which most was run."""
    if view.main_density is None or not view.sizes:
        return None
    size = view.sizes[0]
    return size, view.main_density, [m for m in view.methods(size, view.main_density) if m not in view.dense_methods]


def _around_update(view: View, path: Path) -> bool:
    chosen = _sampled(view)
    if chosen is None:
        return False
    size, density, names = chosen
    x = [0.0 if o == "before" else 0.3 if o == "after" else float(o) for o in OFFSETS]
    panels = (
        ("held-out loss minus that right before the update", view.rise),
        ("the same minus that of the static run of the seed", view.rise_over_static),
    )
    figure, axes = _plot().subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, (title, rise) in zip(axes, panels, strict=True):
        for index, name in enumerate(names):
            spreads = [
                Spread.of([0.0]) if o == "before" else view.spread(rise(o), name, size, density) for o in OFFSETS
            ]
            _line(axis, x, spreads, name, band=False, **_style(index))
        axis.axvline(0, color="0.7", linewidth=1, zorder=0)
        axis.set_xlabel("steps from the topology update")
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("nats per token")
    _legend(figure, axes[0])
    figure.suptitle(f"{size}, d = {density:g}, averaged over updates and seeds", fontsize=11)
    return _save(figure, path)


def _style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}


def _legend(figure: Any, axis: Any, columns: int = 5) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, 5), frameon=False, fontsize=8)


def _spikes(view: View, path: Path) -> bool:
    chosen = _sampled(view)
    if chosen is None:
        return False
    size, density, names = chosen
    found = {name: view.spread(view.rise_over_static(), name, size, density) for name in names}
    known = {name: spread for name, spread in found.items() if spread is not None and name != view.roles.get("static")}
    if not known:
        return False
    figure, axis = _plot().subplots(figsize=(8, 1.2 + 0.3 * len(known)), layout="constrained")
    errors = [spread.deviation or 0.0 for spread in known.values()]
    axis.barh(list(known), [spread.mean for spread in known.values()], xerr=errors, color="C0", ecolor="0.3", capsize=3)
    axis.invert_yaxis()
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_xlabel(f"rise of the held-out loss {LATER} steps after an update, over the static run (nats)")
    axis.set_title(f"{size}, d = {density:g}: mean and standard deviation over seeds", fontsize=11)
    return _save(figure, path)


def _changes(view: View, path: Path) -> bool:
    chosen = _sampled(view)
    if chosen is None:
        return False
    size, density, names = chosen
    ages = sorted({row["age"] for cell in view.runs for row in cell.get("changes") or []})
    curves = {
        name: [view.spread(lambda cell, a=age: ratio(cell, a), name, size, density) for age in ages] for name in names
    }
    known = {name: spreads for name, spreads in curves.items() if any(spread is not None for spread in spreads)}
    if not known:
        return False
    figure, axis = _plot().subplots(figsize=(9, 5.2), layout="constrained")
    for index, (name, spreads) in enumerate(known.items()):
        _line(axis, ages, spreads, name, band=False, marker=".", **_style(index))
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(ages, [str(age) for age in ages])
    axis.minorticks_off()
    axis.set_xlabel("age of the regrown weights (steps)")
    axis.set_ylabel("size of a step: regrown over surviving weights")
    axis.set_title(f"{size}, d = {density:g}, averaged over updates and seeds", fontsize=11)
    _legend(figure, axis)
    return _save(figure, path)


def _curves(view: View, path: Path) -> bool:
    chosen = _sampled(view)
    if chosen is None:
        return False
    size, density, _ = chosen
    names = [view.roles.get(role) for role in ("dense", "static", "naive", "remedied")]
    sizes = view.sizes
    figure, axes = _plot().subplots(1, len(sizes), figsize=(5.6 * len(sizes), 4.4), squeeze=False, layout="constrained")
    for axis, one in zip(axes[0], sizes, strict=True):
        for index, name in enumerate(names):
            curves = [cell["loss_curve"] for cell in view.cells(name, one, density)]
            steps = [point[0] for point in curves[0]] if curves else []
            spreads = [Spread.of([curve[i][1] for curve in curves]) for i in range(len(steps))]
            _line(axis, steps, spreads, str(name), f"C{index}")
        late = [p[1] for name in names for c in view.cells(name, one, density) for p in c["loss_curve"][4:] if p[1]]
        if late:
            axis.set_ylim(min(late) - 0.05, max(late) + 0.05)  # the first steps, alike for all, would hide the rest
        axis.set_title(f"{one}, d = {density:g} (dense: all weights)", fontsize=11)
        axis.set_xlabel("optimizer step")
        axis.legend(frameon=False)
    axes[0][0].set_ylabel("training loss (nats per token)")
    return _save(figure, path)


def _density(view: View, path: Path) -> bool:
    roles = ("static", "naive", "remedied", "naive_scaled", "static_scaled", "swept")
    names = [name for role in roles if (name := view.roles.get(role))]
    sizes = view.sizes
    if len(view.densities) < 2:
        return False
    figure, axes = _plot().subplots(1, len(sizes), figsize=(5.2 * len(sizes), 4.4), squeeze=False, layout="constrained")
    for axis, size in zip(axes[0], sizes, strict=True):
        for index, name in enumerate(names):
            spreads = [view.spread("validation_loss", name, size, density) for density in view.densities]
            _line(axis, view.densities, spreads, name, f"C{index + 1}", marker="o")
        rate = view.best_dense_rate(size)
        dense = view.spread("validation_loss", view.roles.get("dense"), size, None, rate) if rate else None
        if dense is not None:
            axis.axhline(dense.mean, color="C0", linestyle="--", label="dense at its best rate")
        axis.set_xscale("log")
        axis.set_xticks(view.densities, [f"{density:g}" for density in view.densities])
        axis.minorticks_off()
        axis.set_xlabel("density")
        axis.set_title(size, fontsize=11)
    _legend(figure, axes[0][0])
    axes[0][0].set_ylabel("final validation loss (nats per token)")
    return _save(figure, path)
