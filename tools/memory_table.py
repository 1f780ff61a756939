"""Bytes at rest of several runs side by side, from their memory.json, as a Markdown table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pretrain.command import program
from pretrain.errors import DataError, UserError
from pretrain.paths import path_argument
from pretrain.records import misfit, read_document
from pretrain.screen import on_screen, refuse

from .terminal import show

KINDS = ("weights", "gradients", "master", "moments", "ages", "masks")
REMEDY = "a run writes it when its first step is done"


def read_report(folder: Path) -> dict[str, Any]:
    """The memory report of a run folder.

    Raises:
        DataError: there is none, or something else.
    """
    return read_document(folder / "memory.json", REMEDY)


def row(folder: Path) -> dict[str, Any]:
    """The sparse layers of the fullest rank of one run: bytes by kind, measured, and their sum.

    Raises:
        DataError: the run has no report, or it is damaged.
    """
    report = read_report(folder)
    try:
        return _row(folder, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'memory.json'} is no memory report ({misfit(error)}); {REMEDY}") from None


def _row(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    fullest = max((rank["sparse"] for rank in report["measured_per_rank"]), key=lambda kinds: sum(kinds.values()))
    return {
        "run": folder.name,
        "density": float(report["density"]),
        "zero_stage": int(report["zero_stage"]),
        "ranks": int(report["world_size"]),
        **{kind: fullest[kind] for kind in KINDS},
        "total": sum(fullest[kind] for kind in KINDS),
    }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each run's total over that of the dense run at the same stage and rank count, if one is given."""
    dense = {(r["zero_stage"], r["ranks"]): r["total"] for r in rows if r["density"] == 1.0}
    for entry in rows:
        base = dense.get((entry["zero_stage"], entry["ranks"]))
        entry["ratio_to_dense"] = entry["total"] / base if base else None
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, in KB (1,000 bytes) per rank."""
    heads = ["ZeRO", "ranks", "density", *KINDS, "sum (KB)", "of dense"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for entry in sorted(rows, key=lambda r: (r["zero_stage"], r["ranks"], -r["density"])):
        share = "-" if entry["ratio_to_dense"] is None else f"{100 * entry['ratio_to_dense']:.1f} %"
        cells = [entry["zero_stage"], entry["ranks"], entry["density"]]
        sizes = [f"{entry[kind] / 1000:,.0f}" for kind in (*KINDS, "total")]
        lines.append("| " + " | ".join(str(cell) for cell in (*cells, *sizes, share)) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program(f"{__package__}.memory_table"), description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=path_argument, metavar="RUN_DIR", help="run folders, dense ones among them"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    try:
        rows = with_ratios([row(folder) for folder in options.runs])
    except UserError as error:
        return refuse(error)
    show(json.dumps(rows) if options.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(on_screen(main))
