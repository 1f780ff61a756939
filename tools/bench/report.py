"""The result on the screen and as docs/performance.md: both from the same JSON, nothing typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..markdown import table
from ..planner.timing import Machine
from .figures import PARTS

Result = dict[str, Any]


def _number(figure: dict[str, Any], value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f} MB" if figure["unit"] == "MB" else f"{value:.3f}{' s' if figure['unit'] == 's' else ''}"


def figure_rows(result: Result) -> list[list[str]]:
    """Title, value, quartiles, threshold, verdict."""
    rows = []
    for figure in result["figures"]:
        limit, met = figure["threshold"], figure["met"]
        sign = ">=" if figure["at_least"] else "<="
        spread = "" if figure["spread"] is None else _spread(figure["spread"])
        rows.append(
            [
                figure["title"],
                _number(figure, figure["value"]),
                spread,
                "stated" if limit is None else f"{sign} {limit:g}",
                {True: "met", False: "MISSED", None: ""}[met],
            ]
        )
    return rows


def breakdown_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: share of each part in every engine's step."""
    where = result["where_time_goes"]
    names = list(where)
    rows = [[part, *(f"{100 * where[name][part]:.1f} %" for name in names)] for part in PARTS]
    rows.append(["**seconds per step**", *(f"{where[name]['seconds']:.3f}" for name in names)])
    return ["part of a step", *names], rows


def operation_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: milliseconds of each kind of operation, with fused steps and without."""
    found = result["operations"]
    names = list(found)
    kinds = list(found[names[0]])
    rows = [[kind, *(f"{1e3 * found[name][kind]:.0f}" for name in names)] for kind in kinds]
    return ["operations", *names], [*rows, ["**all**", *(f"{1e3 * sum(found[name].values()):.0f}" for name in names)]]


_OPERATIONS = (
    "Milliseconds of CPU time in a step by kind of operation, from torch's profiler, which costs a little itself. "
    "*plain*: norms, gates, rotations, attention and the loss as torch does them one after the other, where backward "
    "passes of norms and gates are among all else; *fused*: each in one pass over memory, which is what runs."
)


def batch_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: step times by the tokens of a step."""
    heads = ["tokens per rank and step", "dense step", "SMET / dense", "CPU time", "dense residency"]
    rows = []
    for tokens, found in result["batches"].items():
        cells = [f"{found[key]['median']:.3f} ({_spread(found[key]['quartiles'])})" for key in _RATIOS]
        rows.append([f"{int(tokens):,}", f"{found['dense_seconds']:.3f} s", *cells])
    return heads, rows


_RATIOS = ("step", "cpu", "dense_residency")


def _spread(values: Sequence[float]) -> str:
    return " to ".join(f"{value:.3f}" for value in values)


def quickstart_line(result: Result) -> str:
    """A step of the quickstart against that of its dense twin, and how much of either the linear layers take."""
    own, dense = result["quickstart"]["SMET"], result["quickstart"]["dense"]
    line = (
        "A step of the quickstart, set as `configs/quickstart.yaml` was at that revision, takes"
        f" {own['step_seconds'] / dense['step_seconds']:.3f} of the dense run's"
        f" ({own['step_seconds']:.3f} s against {dense['step_seconds']:.3f} s, medians)."
    )
    if "linear_layers" in own:  # older results lack it
        line += (
            f" Linear layers take {own['linear_layers']:.1%} of the CPU time of its step, of the dense one's"
            f" {dense['linear_layers']:.1%}: so much there is to save."
        )
    return line


def before_rows(result: Result, before: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: milliseconds of each part of a step, then and now, on the faster dense side and on SMET's."""
    sides = [
        one["where_time_goes"][name or one["dense_optimizer"]] for name in ("", "SMET") for one in (before, result)
    ]
    rows = [[part, *(f"{1e3 * side[part] * side['seconds']:.0f}" for side in sides)] for part in PARTS]
    rows.append(["**all**", *(f"{1e3 * side['seconds']:.0f}" for side in sides)])
    return ["milliseconds of a step", "dense, before", "dense, now", "SMET, before", "SMET, now"], rows


def before_line(result: Result, before: Result) -> str:
    """What came of both sides since an earlier result: medians of their steps, and the ratio."""
    then, now = _steps(before), _steps(result)
    return (
        f"Before is revision {before['machine']['revision']}, block {_block(before)}, on {_where(before)}. Since then"
        f" the dense step went from {then[0]:.3f} to {now[0]:.3f} s, {then[0] / now[0]:.2f} times as fast; SMET's from"
        f" {then[1]:.3f} to {now[1]:.3f} s, {then[1] / now[1]:.2f} times as fast; SMET / dense from"
        f" {_value(before, 'step_time'):.3f} to {_value(result, 'step_time'):.3f}."
    )


def _steps(result: Result) -> tuple[float, float]:
    """Median seconds of the dense step and of SMET's."""
    wall = result["samples"]["seconds"]["wall"]
    return median(wall[result["dense_optimizer"]]), median(wall["SMET"])


def _value(result: Result, name: str) -> float:
    (found,) = (figure["value"] for figure in result["figures"] if figure["name"] == name)
    return float(found)


def limits(result: Result) -> str:
    """What a step consists of that density cannot shorten, in a sentence."""
    where, dense = result["where_time_goes"], result["dense_optimizer"]
    products = where[dense]["forward"] + where[dense]["backward"]
    own = sum(where["SMET"][part] for part in ("expand", "compress", "mask gathers"))
    sizes = result["weights"]
    share = sizes["sparse"] / sizes["all"]
    return (
        f"What limits it: forward and backward are {products:.0%} of the dense step, and their products are the same "
        f"on both sides; SMET's own work, expanding, compressing and gathering masks, is {own:.1%} of its step. The "
        f"rest comes with weights, of which {share:.0%} are in sparse layers ({sizes['all'] / 1e6:.1f} M in all; "
        "embedding and head are as in the dense model). The fewer tokens a step has, the more that rest weighs:"
    )


def scaling_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the predictions."""
    heads = ["model, GPUs, layout", "", "s / step", "tokens / s", "efficiency", "sent / step", "peak per GPU"]
    rows = []
    for case in result["scaling"]:
        rows.append(
            [
                f"{case['model']} on {case['gpus']:,}: {case['layout']}",
                case["side"],
                f"{case['seconds']['total']:.3g}",
                f"{case['tokens_per_second']:,.0f}",
                f"{100 * case['efficiency']:.0f} %",
                f"{case['sent_bytes'] / 1e9:.2f} GB",
                f"{case['peak_bytes'] / 1e9:.1f} GB",
            ]
        )
    return heads, rows


def assumptions(result: Result) -> str:
    """What the predictions rest on."""
    return Machine(**result["assumptions"]).describe() + " Each is an option of the benchmark."


def setting(result: Result) -> str:
    """What was measured on what, in sentences."""
    given, machine = result["options"], result["machine"]
    lines = [
        f"Model {'(tiny, a test run)' if given['quick'] else given['model']}, density {given['density']:g}, block "
        f"{_block(result)}, bf16, ZeRO-{given['zero_stage']}, {given['ranks']} ranks of one thread on "
        f"{given['device']}, {given['micro_batch']} sequences of {given['sequence']} tokens per rank and step.",
        f"Machine: {_where(result)}; {machine['system']}; Python {machine['python']}, torch {machine['torch']}, "
        f"DeepSpeed {machine['deepspeed']}; {machine['kernels']}; revision {machine['revision']}; load average "
        f"{result['load'][0]} before and {result['load'][1]} after; {result['seconds']:.0f} s in all.",
    ]
    return "\n\n".join(lines)


def _block(result: Result) -> str:
    return " x ".join(str(side) for side in result["options"]["block"])


def _where(result: Result) -> str:
    machine = result["machine"]
    return machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"


def screen(result: Result) -> str:
    """For a terminal."""
    heads, rows = ["figure", "value", "quartiles", "threshold", ""], figure_rows(result)
    parts = [setting(result), table(heads, rows), quickstart_line(result), table(*breakdown_rows(result))]
    parts += [table(*batch_rows(result)), table(*scaling_rows(result)), assumptions(result), verdict(result)]
    return "\n\n".join(parts)


def verdict(result: Result) -> str:
    """One line: what was missed, and what was not measured."""
    left = [figure["name"] for figure in result["figures"] if figure["value"] is None]
    missed = result["missed"]
    return f"missed: {', '.join(missed) if missed else 'none'}; not measured: {', '.join(left) if left else 'none'}"


def page(result: Result, before: Result | None = None) -> str:
    """docs/performance.md.

    Args:
        before: an earlier result, for what came of it.
    """
    notes = [f"- **{figure['title']}**: {figure['note']}" for figure in result["figures"] if figure["note"]]
    quick = result["quickstart"]
    names = list(dict.fromkeys(name for side in quick.values() for name in side["parts"]))
    shares = [[name, *(f"{100 * side['parts'].get(name, 0.0):.1f} %" for side in quick.values())] for name in names]
    operations = (
        [table(*operation_rows(result)), _OPERATIONS] if "operations" in result else []
    )  # older results lack it
    since = [] if before is None else [
        "### Before and now", table(*before_rows(result, before)), before_line(result, before),
    ]  # fmt: skip
    made_with = "" if before is None else " --before docs/performance-before.json"
    parts = [
        "# Performance",
        f"This page is made by `python -m tools.bench render docs/performance.json docs/performance.md{made_with}` "
        "from the result of `python -m tools.bench --json docs/performance.json`. Ratios compare SMET with a model of "
        "ordinary linear layers under DeepSpeed at the same ZeRO stage with the faster of DeepSpeedCPUAdam and torch's "
        "fused AdamW; engines take turns in the same processes, which for step times are started anew "
        f"{result['sessions']} times: where memory happens to lie makes an engine faster or slower for as long as it "
        "lives. Values are medians. Products over active tiles, which save time, and whole steps "
        "with them have a page of their own, [performance-tiles.md](performance-tiles.md), and so has one GPU: "
        "[performance-gpu.md](performance-gpu.md).",
        setting(result),
        "## Figures",
        table(["figure", "value", "quartiles", "threshold", ""], figure_rows(result)),
        verdict(result).capitalize() + ".",
        "\n".join(notes),
        "## Where the time of a step goes",
        table(*breakdown_rows(result)),
        "Measured on rank 0 with clocks around each part, which cost a little themselves. `forward` and `backward` are "
        "products, attention, norms and the loss; waiting for a slower rank counts as the collective waited in.",
        *operations,
        limits(result),
        table(*batch_rows(result)),
        "Medians and quartiles of the ratio round by round; the largest size is that of the figures above.",
        *since,
        "## The quickstart run",
        "Share of the run's time, evaluations, checkpoints and topology updates included.",
        table(["part of the run", *quick], shares),
        quickstart_line(result),
        "## Scaling on paper",
        table(*scaling_rows(result)),
        assumptions(result) + " Efficiency is the products' share of a step. Dense and SMET are priced in the same "
        "layout; where the dense peak exceeds a GPU's memory, dense would need another one.",
    ]
    return "\n\n".join(parts) + "\n"
