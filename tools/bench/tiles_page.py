"""The tables and the page of ``python -m tools.bench tiles``."""

from __future__ import annotations

from typing import Any

from . import whole
from .card.products import PRODUCTS


def table(rows: list[dict[str, Any]]) -> str:
    """Cases as a Markdown table, times over tiles by those of the whole matrix."""
    lines = [
        "| type | out x in | tokens | tile | density | forward | input gradient | values gradient | all three | "
        "quartiles | dense ms | error |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        each = " | ".join(f"{row['ratios'][product]['median']:.3f}" for product in (*PRODUCTS, "all"))
        low, high = row["ratios"]["all"]["quartiles"]
        lines.append(
            f"| {row['dtype']} | {row['out']} x {row['in']} | {row['tokens']:,} | {row['tile'][0]} x {row['tile'][1]} "
            f"| {row['density']:g} | {each} | {low:.3f} to {high:.3f} | {row['milliseconds']['dense all']:.1f} | "
            f"{max(row['errors'].values()):.1e} |"
        )
    return "\n".join(lines)


def screen(result: dict[str, Any]) -> str:
    """What was measured, in tables under headings."""
    at, held = result["machine"], result["held"] or {"steps": [], "products": []}
    on = f"dense on {at['dense']}, over tiles on {at['tiles']}"
    parts = [
        (f"## Whole steps, {on}", whole.table, result["steps"]),
        ("## Whole steps, both held to AVX-512 BF16", whole.table, held["steps"]),
        ("## Whole steps with other numbers of tokens, and at density 0.5", whole.table, result["more"]),
        (f"## Products, {on}", table, result["products"]),
        ("## Products, both held to AVX-512 BF16", table, held["products"]),
    ]
    return "\n\n".join(f"{heading}\n\n{shown(found)}" for heading, shown, found in parts if found)


_HELD = (
    " *Held to AVX-512 BF16* means that both sides leave the matrix unit alone (`ONEDNN_MAX_CPU_ISA`), as on a "
    "processor that has none; these figures are from a process of their own."
)


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    at = result["machine"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    trial = " (a test run: sizes are tiny, times mean nothing)" * result["quick"]
    return (
        f"# Products over active tiles on a CPU{trial}\n\n"
        "This page is made by `python -m tools.bench render RESULT.json PAGE.md` from the result of `python -m "
        "tools.bench tiles --json RESULT.json`. Each figure of products is the time over active tiles by the time of "
        "torch's product with the whole matrix, alternately in one run (medians; quartiles of all three together); "
        "below 1 tiles are faster. *Error* is the largest relative one against fp32, in the Frobenius norm. Whole "
        "steps are those of engines that take turns in the same two ranks of one thread: bf16, ZeRO-2, tokens per rank "
        "as said, against ordinary layers with torch's fused AdamW; who multiplies is what `sparsity.compute: auto` "
        f"measured at its start.{_HELD * bool(result['held'])}\n\n"
        f"Machine: {at['processor']}, {at['cores']} cores; products over tiles on {at['tiles']}, torch's dense ones on "
        f"{at['dense']} (bf16); torch {at['torch']}, DeepSpeed {at['deepspeed']}; {threads}. Measured: "
        f"{'; '.join(_measured(part, about) for part, about in result['measured'].items())}.\n\n"
        f"{screen(result)}\n"
    )


def _measured(part: str, about: dict[str, Any]) -> str:
    before, after = about["load"]
    return f"{part} in {about['seconds']:.0f} s at revision {about['revision']}, load {before} before and {after} after"
