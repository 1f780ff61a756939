"""The page of results: everything on it comes from ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.command import told
from pretrain.errors import DataError
from pretrain.files import write_atomically
from pretrain.records import misfit

from ..markdown import table
from . import answer_page, defaults, figures, hypotheses, law, reading, sentences, tables, text, winners
from .answers import answered as answers_of
from .figures import Made
from .view import LATER, View

CAPTIONS = {
    "branches": 'Branch experiment: excess loss over "no update", mean and one standard deviation over branches.',
    "update": "Held-out loss around a topology update less that of the static run on the same batches, averaged over "
    "updates and seeds. A line that rises through the update as before it is of a run that learns more slowly.",
    "spikes": f"The rise of the held-out loss within {LATER} steps of an update, over the static run, by method.",
    "changes": "Change of regrown weights in a step over that of all others, by their age.",
    "curves": "Training loss, mean and standard deviation over seeds; the dense model at its best learning rate.",
    "losses": "Final validation losses; small dots are seeds, a full circle differs from the first row at p < 5 %.",
    "density": "Final validation loss less that of the dense model at its best learning rate, by density.",
}
"""What is drawn; what it says stands above it."""


ELSEWHERE = (
    "What else was measured: [what this page left open](results-afterwards.md); "
    "[densities, permutations, updates and schedules](results-settings.md) at the better initial weights, and 8-bit "
    "Adam on both sides; [rules of rewiring at tiles](results-rewiring.md), and [from which tile on none pays]"
    "(results-granularity.md); [moments of one byte](results-moments.md) in the program's own AdamW; "
    "[what causes the spikes of naive Adam](results-spikes.md); [what tiles cost](results-tiles.md) through the whole "
    "program, and [what they save in time](performance-tiles.md). Some of these questions at 60m and 130m, for one "
    "GPU: `python -m tools.ablate configs/ablations/gpu.yaml --jobs 1` (not measured yet)."
)
"""Below the overview of the page that is made of ``BUDGET``."""
BUDGET = "budget.yaml"


def write(results: dict[str, Any], target: Path) -> list[Path]:
    """Make the Markdown page and its figures from results.json: nothing on it is typed by hand."""
    try:
        view = View(results)
        prefix = target.parent / "images" / target.stem
        answered = answer_page.write(view, prefix)
        fitted, drawn = law.section(view, prefix)
        images = figures.draw(view, prefix) if view.branch_groups() or not answered.sections else {}
        write_atomically(target, render(view, images, [*answered.sections, *fitted]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the results are not those of {told('ablate')} ({misfit(error)}); make them anew") from error
    return [*answered.images, *drawn, *(image.path for image in images.values())]


def render(view: View, images: Mapping[str, Made], answered: Sequence[str] = ()) -> str:
    """The page's text.

    Args:
        view: the results.
        images: figures that were drawn into ``images/`` beside the page.
        answered: the part about the file's questions; where there is one, losses are in its tables.
    """
    parts = [
        _head(view),
        *_summary(view),
        *(_overview(view) if answered else []),
        *hypotheses.section(view),
        *answered,
        *_branches(view, images),
        *([] if answered else [*_finals(view, images), *_methods(view, images)]),
    ]
    chosen = defaults.sentences(view)
    follows = [*winners.section(view), *([reading.bullets(chosen)] if chosen else [])]
    if follows:
        parts += ["## What follows for the defaults", *follows]
    return "\n\n".join([*parts, _settings(view)]) + "\n"


def _image(images: Mapping[str, Made], name: str) -> list[str]:
    if name not in images:
        return []
    said = f"{images[name].message}. {CAPTIONS[name]}"
    return [f"![{said}](images/{images[name].path.name})", f"*{said}*"]


def _head(view: View) -> str:
    results, machine = view.results, view.results["machine"]
    texts = " or ".join(map(text.describe, results["texts"])) or "unknown"
    revisions = ", ".join(revision[:12] for revision in results["revisions"])
    own = bool(view.matrix.get("text"))
    shifts = "; another Python has another standard library, on which all losses shift" if own else ""
    minutes = results["cpu_seconds"] / 60
    spent = f"{minutes:.0f} CPU minutes, {minutes / 2:.0f} minutes of two quiet cores"
    if view.device == "cuda":
        spent = f"{results['wall_seconds'] / 3600:.1f} hours of one GPU"
    left = results.get("not_asked") or []
    unasked = f" Questions of the file that were not asked: {', '.join(left)}." if left else ""
    branched = " (in the branch experiment: over branches)" if view.branch_groups() else ""
    return (
        f"# {view.matrix.get('title') or 'Results: which remedy removes the spikes, at what cost'}\n\n"
        f"Made by `{results['command']}` on {results['written']}, from revision {revisions}, on {machine['processor']} "
        f"({machine['cores']} cores, torch {machine['torch']}, deepspeed {machine['deepspeed']}); rendered by "
        "`python -m tools.ablate render`. Numbers are those of its `results.json`, which also choose the sentences; "
        f"notes are the matrix file's own. It took {spent}. Text: {texts}{shifts}.{unasked}\n\n"
        f"Losses are in nats per token; `±` is one standard deviation over seeds{branched}. Differences are tested "
        "seed by seed with a paired two-sided t-test at 5 %, not adjusted for their number: one of twenty that are "
        "none is called significant."
    )


def _summary(view: View) -> list[str]:
    said = reading.unfinished(view)
    return [f"**Not complete.** {said[0]}"] if said else []


def _overview(view: View) -> list[str]:
    elsewhere = [ELSEWHERE] if view.results["file"] == BUDGET else []
    return [
        "## When it pays, and when not",
        reading.bullets(sentences.overview(answers_of(view), view.dense_methods)),
        *elsewhere,
    ]


def _branches(view: View, images: Mapping[str, Made]) -> list[str]:
    groups = view.branch_groups()
    if not groups:
        return []
    parts = [
        "## The branch experiment: what causes the spike",
        "From one state just before a topology update, the same batches under each remedy, evaluated on one held-out "
        'batch. The table gives the loss over "no update" (under the same bias correction and learning rate). The '
        "topology update is the same in all variants; *prune only* keeps regrown weights at zero, and is what no "
        "remedy can undercut but by learning. The *neutral* state is that of a run whose topology never changed, so "
        "that all weights are of one age; the *SMET* state is in the middle of SMET training. Warm-up of *all* weights "
        "is no variant here: those active from the start are older than W.",
        *filter(None, [reading.of_run_files(view)]),
        reading.bullets(reading.branch_claims(view)),
    ]
    for group in groups:
        size, base, density = group
        seeds = len({branch["seed"] for branch in groups[group]})
        parts.append(
            f"**{size}, d = {density:g}, from the {base} state**: {len(groups[group])} branches, seeds: {seeds}"
        )
        parts.append(tables.branches(view, group))
    parts += _image(images, "branches")
    shares = reading.remaining_shares(view)
    if shares:
        parts.append(f"What each remedy leaves of naive Adam's distance to pruning alone, {reading.READ_AT} steps on:")
        parts.append(reading.bullets(shares))
    late = reading.late_branches(view)
    if late:
        parts.append(
            "Naive Adam divides by a correction of the run's step t, so that its cold start is the worse the later the "
            "update: its largest step under a constant gradient, in learning rates, is the factor in brackets (6.6 for "
            f"t without end, see [theory.md](theory.md)). Its excess loss after {reading.READ_AT} steps:"
        )
        parts.append(reading.bullets(late))
    return parts


def _finals(view: View, images: Mapping[str, Made]) -> list[str]:
    if not view.runs:
        return []
    parts = ["## Final losses"]
    if view.densities:
        parts += ["Validation loss at the end, all at the same settings and learning rate:", tables.final_losses(view)]
    if view.dense_rates(view.sizes[0]):
        parts += ["Learning rate of the dense model, swept:", tables.dense_sweep(view)]
    swept = reading.rate_claims(view)
    if swept:
        parts += [
            f"Which rate is best at which density; {view.roles['swept']} gives it to the weights as it is:",
            tables.density_sweep(view),
            reading.bullets(swept),
        ]
    claims = reading.final_claims(view)
    if claims:
        parts.append(reading.bullets(claims))
    return [*parts, *(part for name in ("density", "curves", "losses") for part in _image(images, name))]


def _methods(view: View, images: Mapping[str, Made]) -> list[str]:
    if view.main_density is None:
        return []
    parts = [f"## Every method at {view.sizes[0]}, d = {view.main_density:g}"]
    if not view.updated:
        return [*parts, tables.methods(view)]
    parts += [
        "*Jump*: loss of a fixed held-out batch right behind an update minus that right before it, averaged over the "
        f"updates of a run. *Rise*: the same {LATER} steps later, where a cold start peaks; the loss falls all the "
        "while, so the rise over the static run on the same batches is the better spike metric. *Step of regrown / "
        "others*: root mean square change of the weights grown at the last update over that of all others in the same "
        "step. *Bytes at rest*: weights, gradients, masters, moments, ages and masks of the sparse layers, measured.",
        tables.methods(view),
        reading.bullets(reading.spike_claims(view)),
    ]
    for name in ("update", "spikes", "changes"):
        parts += _image(images, name)
    return parts


def _counted(view: View) -> list[str]:
    """What stands beside the notes where rates were tuned in shorter runs."""
    if not any("tuned_at" in own for own in view.matrix["sizes"].values()):
        return []
    return [
        "Rates of longer runs were tuned in shorter ones, as the tables say. Longer runs tend to want lower rates.",
        "The notes give tokens per active weight of the sparse rows; the tables count those of each row.",
    ]


def _settings(view: View) -> str:
    matrix = view.matrix
    content = {key: matrix[key] for key in ("run", "sizes", "branches") if key in matrix}
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items())
    named = [[name, _plainly(keys)] for name, keys in (matrix.get("methods") or {}).items()]
    return (
        "## Settings, cost and limits\n\n"
        f"{_limits(view)}\n\n"
        f"{''.join(f'- {note}{chr(10)}' for note in [*matrix.get('notes', []), *_counted(view)])}\n"
        f"{tables.cost(view)}\n\n"
        f"{table(['method', 'its settings'], named)}\n\n"
        f"From `{view.results['file']}`, as each cell resolves it:\n\n```\n{text}\n```"
    )


def _plainly(keys: Mapping[str, Any]) -> str:
    """Settings of a method in one line, as a run file would say them."""
    return f"`{json.dumps(keys)[1:-1]}`".replace('"', "")


def _limits(view: View) -> str:
    own = view.matrix.get("text")
    source = "dictionaries of Debian and " if (own or {}).get("debian") else ""
    tiny = (
        f"The models are tiny and see little text: {source}Python's own standard library. What holds here need not "
        "hold at larger scale, and what does not show here may show there. "
    )
    lone = (
        "Effective fan-in initialisation is on for every sparse method, so that only the remedies differ; the guard "
        "that skips spikes is off. "
    )
    return (
        (tiny if own else "")
        + (lone if view.updated and not view.matrix.get("questions") else "")
        + "A seed decides initial weights, masks, growth and the order of the text. The same text, order and initial "
        "weights serve every method of a seed."
    )
