"""The picture of one run, or of several laid over each other."""

from __future__ import annotations

from pathlib import Path

from . import panels, style
from .panels import Plan
from .runs import Run

WIDTH, TOP, ROW, HEAD = 9.0, 3.5, 1.45, 0.75
"""Inches: of the picture; of the losses; of a row of panels; of the title."""
NAMED = 4


def draw(made: Plan, picture: Path, title: str | None) -> None:
    """Write the picture: losses on top, the other panels in two columns below; all share the axis of steps.

    Args:
        title: None = what the losses say.
    """
    names = list(made.panels)
    rows = (len(names) + 1) // 2
    timed = [name for name in names if name != panels.MEMORY]
    heights = [TOP, *[ROW] * rows]
    if names[-1:] == [panels.MEMORY] and len(names) % 2:
        heights[-1] = 0.62 * ROW  # bars alone in their row
    size = (WIDTH, HEAD + sum(heights))
    with style.picture(picture, size, title or headline(made), below(made)) as figure:
        grid = figure.add_gridspec(1 + rows, 2, height_ratios=heights)
        top = figure.add_subplot(grid[0, :])
        panels.losses(top, made)
        panels.mark_updates(top, made)
        for place, name in enumerate(names):
            row, column = 1 + place // 2, place % 2
            alone = place == len(names) - 1 and column == 0
            axis = figure.add_subplot(
                grid[row, :] if alone else grid[row, column], sharex=None if name == panels.MEMORY else top
            )
            made.panels[name](axis)
            if name == panels.MEMORY:
                continue
            panels.mark_updates(axis, made)
            under = names[place + 2] if place + 2 < len(names) else None
            last = under is None or under == panels.MEMORY
            axis.tick_params(labelbottom=last)
            if last:
                axis.set_xlabel("optimizer step")
        top.margins(x=0.015)
        style.plain_ticks(top.xaxis, "{:,.0f}")
        if not timed:
            top.set_xlabel("optimizer step")


def headline(made: Plan) -> str:
    """The last losses, lowest first, of what every run has measured."""
    validated = all(run.last("validation_loss") is not None for run in made.runs)
    word, key = ("validation", "validation_loss") if validated else ("training", "loss")
    ends = sorted((value, run.name) for run in made.runs if (value := _end(made, run, key)) is not None)
    if len(made.runs) == 1:
        name = made.runs[0].name
        return f"{name}: {word} loss {ends[0][0]:.3f} at the end" if ends else f"{name}: diverged"
    said = [f"{style.short(name)} {value:.3f}" for value, name in ends[:NAMED]]
    said += [f"{len(ends) - NAMED} more"] if len(ends) > NAMED else []
    diverged = len(made.runs) - len(ends)
    said += [f"{diverged} diverged"] if diverged else []
    return f"Last {word} loss: {', '.join(said)}"


def _end(made: Plan, run: Run, key: str) -> float | None:
    """The last value; of training losses, which are noisy, the smoothed one."""
    from .smoothing import smoothed

    if run.rows[-1]["loss"] is None:
        return None
    if key != "loss":
        return run.last(key)
    return float(smoothed(*run.series("loss"), made.over)[-1])


def below(made: Plan) -> str:
    """What was run, for how long: of several runs, once what they have in common."""
    lengths = [_length(run) for run in made.runs]
    alike = len(set(lengths)) == 1
    said = []
    for run, length in zip(made.runs, lengths, strict=True):
        known = run.method if run.method not in run.name.lower() else ""
        density = f"density {run.densities[-1][1]:g}" if run.densities and _even(run) else ""
        updates = f"{len(run.updates)} topology updates" if run.updates else ""
        facts = ", ".join(filter(None, [known, density, updates, "" if alike else length]))
        said.append(": ".join(filter(None, [style.short(run.name) if len(made.runs) > 1 else "", facts])))
    if len(made.runs) > NAMED:
        said, alike = [f"{len(made.runs)} runs"], True
        lengths = lengths if len(set(lengths)) == 1 else [""]
    if alike and lengths[0]:
        said.append(lengths[0] + (" each" if len(made.runs) > 1 else ""))
    if made.frame is not None:
        said.append(f"losses up to {made.frame[2]:.3g} lie above the frame")
    return "; ".join(said)


def _length(run: Run) -> str:
    tokens = run.last("tokens")
    return f"{run.steps[-1]:,} steps" + (f", {_millions(tokens)} tokens" if tokens else "")


def _even(run: Run) -> bool:
    """Whether all layers have one density in the end."""
    _, low, high = run.densities[-1]
    return low == high


def _millions(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
