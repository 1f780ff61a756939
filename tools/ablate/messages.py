"""What each figure says, in the sentence above it: chosen by the numbers, like those of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .reading import READ_AT, TIMES
from .statistics import Difference, Spread, means_over_common
from .view import LATER, View


def span(values: Sequence[float], digits: int = 3) -> str:
    """``0.031 to 0.064``, or one number."""
    low, high = (f"{value + 0.0:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def beside(gaps: Sequence[float], other: str, digits: int = 2) -> str:
    """Where something lies that is off by ``gaps`` nats from ``other``."""
    if min(gaps) > 0 or max(gaps) < 0:
        return f"{span([abs(gap) for gap in gaps], digits)} nats {'above' if min(gaps) > 0 else 'below'} {other}"
    return f"{span(gaps, digits)} nats from {other}"


def branches(view: View) -> str:
    """Naive Adam and all remedies, ``READ_AT`` steps behind the update, over all groups of branches."""
    names = view.roles.get("branches") or {}
    spreads = [
        [view.branch_spread(some, names.get(role, ""), READ_AT) for role in ("naive", "remedied")]
        for some in view.branch_groups().values()
    ]
    known = [(naive.mean, cured.mean) for naive, cured in spreads if naive is not None and cured is not None]
    if not known:
        return 'Loss over "no update", by remedy'
    naive, cured = ([pair[side] for pair in known] for side in (0, 1))
    where = f"{READ_AT} steps after an update"
    if min(naive) <= 0:
        return f"{where} naive Adam stands {beside(naive, chr(34) + 'no update' + chr(34), 3)}, SMET {span(cured)}"
    cost = f"Naive Adam's regrown weights cost {span(naive)} nats {where}"
    if max(cured) <= 0:
        return f"{cost}; with SMET they cost nothing"
    if max(cured) < min(naive) / TIMES:
        return f"{cost}; with SMET less than a tenth of that"
    return f"{cost}; with SMET {span(cured)}"


def update(view: View, size: str, density: float) -> str:
    """Whether whole runs tell naive Adam from all remedies, ``LATER`` steps behind an update."""
    naive, cured = view.roles.get("naive"), view.roles.get("remedied")
    gap = Difference.of(
        view.by_seed(view.rise_over_static(), naive, size, density),
        view.by_seed(view.rise_over_static(), cured, size, density),
    )
    if gap is None:
        return "Held-out loss around a topology update, over the static run"
    where, measured = f"{LATER} steps after an update", f"{beside([gap.mean], str(cured), 4)} ({gap.verdict()})"
    if gap.significant:
        return f"Whole runs tell the methods apart: {where} {naive} stands {measured}"
    return f"Whole runs do not tell the methods apart: {where} {naive} stands {measured}"


def risen(view: View, size: str, density: float, names: Sequence[str]) -> dict[str, Difference]:
    """Method -> its rise over the static run, tested against none."""
    found = {}
    for name in names:
        rises = view.by_seed(view.rise_over_static(), name, size, density)
        gap = Difference.of(rises, dict.fromkeys(rises, 0.0))
        if gap is not None and name != view.roles.get("static"):
            found[name] = gap
    return found


def spikes(found: dict[str, Difference]) -> str:
    """Which methods rise by more than chance."""
    where = f"{LATER} steps after an update"
    if all(gap.p is None for gap in found.values()):
        return f"Rise of the held-out loss {where}, over the static run: one seed, so no test"
    beyond = [name for name, gap in found.items() if gap.significant and gap.mean > 0]
    if not beyond:
        return f"{where} the loss of none of {len(found)} methods has risen over the static run by more than chance"
    listed = " and ".join([", ".join(beyond[:-1]), beyond[-1]] if len(beyond) > 1 else beyond)
    only = f"{where}, of {len(found)} methods only {listed} has" if len(beyond) == 1 else f"{where} {listed} have"
    return f"{only} risen over the static run by more than chance"


def changes(view: View, first: dict[str, Spread], age: int) -> str:
    """How far a weight moves in its first step, against those that were there."""
    naive, cured = (first.get(str(view.roles.get(role))) for role in ("naive", "remedied"))
    if naive is None or cured is None:
        return "How far regrown weights move in a step, against all others"
    step = "In its first step" if age == 1 else f"In step {age}"
    return (
        f"{step} a regrown weight moves {naive.mean:.2f} times as far as the others under {view.roles['naive']}, "
        f"{cured.mean:.2f} times under {view.roles['remedied']}"
    )


def curves(view: View, density: float) -> str:
    """From which step on the remedied run stays on one side of the static one."""
    cured, static = view.roles.get("remedied"), view.roles.get("static")
    sides = [(size, side) for size in view.sizes if (side := _settled(view, size, density))]
    above = {is_above for _, (_, is_above) in sides}
    if len(above) != 1:
        return "Training loss"
    steps = [step for _, (step, _) in sides]
    said = f"step {steps[0]}" if len(set(steps)) == 1 else f"steps {min(steps)} to {max(steps)}"
    word = "above" if above == {True} else "below"
    return f"{cured}'s training loss stays {word} that of {static} masks from {said} on"


def _settled(view: View, size: str, density: float) -> tuple[int, bool] | None:
    """The first step behind which the remedied run's mean loss is always on the side of the static run's where it
    ends; and whether that is above."""
    means = []
    for role in ("remedied", "static"):
        curves = [dict(map(tuple, cell["loss_curve"])) for cell in view.cells(view.roles.get(role), size, density)]
        steps = set.intersection(*map(set, curves)) if curves else set()
        means.append({step: spread.mean for step in steps if (spread := Spread.of([c[step] for c in curves]))})
    gaps = sorted((step, means[0][step] - means[1][step]) for step in means[0].keys() & means[1].keys())
    if not gaps or gaps[-1][1] == 0:
        return None
    is_above = gaps[-1][1] > 0
    other = [place for place, (_, gap) in enumerate(gaps) if (gap > 0) != is_above]
    return gaps[other[-1] + 1 if other else 0][0], is_above


def density(view: View) -> str:
    """Final validation losses of all remedies beside those of the dense and the static model, over all cells."""
    cured, said = view.roles.get("remedied"), []
    cells = [(size, density) for size in view.sizes for density in view.densities]
    dense = [spread.mean for cell in cells if (spread := over_dense(view, cured, *cell)) is not None]
    gaps = (view.difference(cured, view.roles.get("static"), *cell) for cell in cells)
    static = [gap.mean for gap in gaps if gap is not None]
    said += [beside(dense, "dense at its best rate")] if dense else []
    said += [beside(static, "static masks")] if static else []
    return f"{cured} ends {' and '.join(said)}" if said else "Final validation loss against density"


def over_dense(view: View, method: str | None, size: str, density: float) -> Spread | None:
    """Validation loss minus that of the dense model at its best rate, seed by seed."""
    rate = view.best_dense_rate(size)
    if rate is None:
        return None
    own = view.by_seed("validation_loss", method, size, density)
    dense = view.by_seed("validation_loss", view.roles.get("dense"), size, None, rate)
    return Spread.of([own[seed] - dense[seed] for seed in sorted(own.keys() & dense.keys())])


def losses(by_seed: Mapping[str, Mapping[int, float]]) -> str:
    """Which method has the lowest loss, over seeds that all of them have."""
    common = set.intersection(*(set(found) for found in by_seed.values()))
    mean = dict(zip(by_seed, means_over_common(list(by_seed.values())), strict=True))
    best, first = min(mean, key=lambda name: mean[name]), next(iter(mean))
    seeds = f"{len(common)} seeds that all have" if common else "seeds of their own"
    return f"{best} is lowest, {mean[first] - mean[best]:.3f} nats below {first} over {seeds}"
