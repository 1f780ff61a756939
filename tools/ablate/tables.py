"""The tables of the page, as Markdown."""

from __future__ import annotations

from typing import Any

from ..markdown import table
from .statistics import Spread
from .view import LATER, View

BRANCH_STEPS = (1, 3, 10, 30, 100)


def _text(spread: Spread | None, digits: int = 3, percent: bool = False) -> str:
    if spread is None:
        return "-"
    if not percent:
        return spread.text(digits)
    scaled = Spread(100 * spread.mean, None if spread.deviation is None else 100 * spread.deviation, spread.count)
    return f"{scaled.text(0)} %"


def final_losses(view: View) -> str:
    """Validation loss of the methods that every size has, by density, at the file's learning rate."""
    main = view.main_density
    rows = []
    for size in view.sizes:
        for method in view.methods(size, main) if main else []:
            spreads = [view.spread("validation_loss", method, size, density) for density in view.densities]
            if sum(spread is not None for spread in spreads) < len(view.densities) > 1:
                continue
            seeds = max(spread.count for spread in spreads if spread)
            if method in view.dense_methods:
                rows.append([f"{size}: {method}", _text(spreads[0]), *["-"] * len(spreads), str(seeds)])
            else:
                rows.append([f"{size}: {method}", "-", *(_text(spread) for spread in spreads), str(seeds)])
        rows += _tuned_dense(view, size)
    return table(["size: method", "d = 1", *(f"d = {density:g}" for density in view.densities), "seeds"], rows)


def _tuned_dense(view: View, size: str) -> list[list[str]]:
    rate = view.best_dense_rate(size)
    if rate is None or rate == view.rate(size):
        return []
    spread = view.spread("validation_loss", view.roles["dense"], size, None, rate)
    return [[f"{size}: dense, tuned (lr {rate:g})", _text(spread), *["-"] * len(view.densities), str(spread.count)]]


def dense_sweep(view: View) -> str:
    """Validation loss of the dense model by learning rate; the best one in bold."""
    rows = []
    for size in view.sizes:
        best = view.best_dense_rate(size)
        for rate, spread in view.by_rate(view.roles["dense"], size, None).items():
            mark = "**" if rate == best else ""
            rows.append([f"{size}: lr {rate:g}", f"{mark}{_text(spread)}{mark}", str(spread.count)])
    return table(["size: learning rate", "validation loss", "seeds"], rows)


def density_sweep(view: View) -> str:
    """Validation loss of the swept sparse method by learning rate and density, dense beside it; the best in bold."""
    size, swept = view.sizes[0], view.roles["swept"]
    columns = [(view.roles.get("dense"), 1.0), *((swept, density) for density in view.densities)]
    losses = [view.by_rate(method, size, density) for method, density in columns]
    best = [view.best_rate(method, size, density) for method, density in columns]
    rows = []
    for rate in sorted({rate for one in losses for rate in one}):
        cells = [f"**{_text(one.get(rate))}**" if rate == lowest else _text(one.get(rate))
                 for one, lowest in zip(losses, best, strict=True)]  # fmt: skip
        rows.append([f"{rate:g}", *cells])
    return table(["learning rate", "dense", *(f"d = {density:g}" for density in view.densities)], rows)


def methods(view: View) -> str:
    """Everything measured of every method, at the size and density that has most of them."""
    size, density = view.sizes[0], view.main_density
    assert density is not None
    heads = [
        "method", "validation loss", "training loss", "jump at the update", f"rise {LATER} steps later",
        "the same, over static", "first step of regrown / others", f"step {LATER} of regrown / others",
        "regrown pruned next time", "bytes at rest", "seeds",
    ]  # fmt: skip
    rows = []
    for method in view.methods(size, density):

        def spread(key: Any, method: str = method) -> Spread | None:
            found: Spread | None = view.spread(key, method, size, density)
            return found

        rows.append(
            [
                method,
                _text(spread("validation_loss")),
                _text(spread("train_loss")),
                _text(spread(view.rise("after")), 4),
                _text(spread(view.rise(LATER)), 4),
                _text(spread(view.rise_over_static()), 4) if method not in view.dense_methods else "-",
                _text(spread(lambda cell: ratio(cell, 1)), 2),
                _text(spread(lambda cell: ratio(cell, int(LATER))), 2),
                _text(spread("recycled"), percent=True),
                _text(spread(lambda cell: cell["bytes_at_rest"]["measured"] / 1e6), 2).split(" ±")[0] + " MB",
                str(len(view.cells(method, size, density))),
            ]
        )
    measured = [place for place in range(len(heads)) if any(row[place] != "-" for row in rows)]
    return table([heads[place] for place in measured], [[row[place] for place in measured] for row in rows])


def ratio(cell: dict[str, Any], age: int) -> float | None:
    """Root mean square change of weights of this age over that of all others, in the same step."""
    for row in cell.get("changes") or []:
        if row["age"] == age and row["regrown"] is not None and row["survivors"]:
            return float(row["regrown"] / row["survivors"])
    return None


def branches(view: View, group: tuple[str, str, float]) -> str:
    """Excess loss of every variant over its "no update"."""
    found = view.branch_groups()[group]
    measured = {step for branch in found for excess in branch["excess"].values() for step in excess}
    steps = [step for step in BRANCH_STEPS if step in measured]
    names = list(dict.fromkeys(name for branch in found for name in branch["excess"]))
    rows = [[name, *(_text(view.branch_spread(found, name, step), 4) for step in steps)] for name in names]
    return table(["continued with", *(f"after {step}" for step in steps)], rows)


def cost(view: View) -> str:
    """What the cells took."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for cell in view.results["cells"]:
        kinds.setdefault(f"{'branches, ' if cell['kind'] == 'branches' else ''}{cell['size']}", []).append(cell)
    rows = [
        [kind, str(len(cells)), f"{sum(c['cpu_seconds'] for c in cells) / len(cells):.0f}",
         f"{sum(c['cpu_seconds'] for c in cells) / 60:.1f}", f"{sum(c['wall_seconds'] for c in cells) / 60:.1f}"]
        for kind, cells in kinds.items()
    ]  # fmt: skip
    rows.append(["total", str(len(view.results["cells"])), "", f"{view.results['cpu_seconds'] / 60:.1f}",
                 f"{view.results['wall_seconds'] / 60:.1f}"])  # fmt: skip
    return table(["cells", "number", "CPU seconds each", "CPU minutes", "wall minutes, one after another"], rows)
