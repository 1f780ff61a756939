"""Draw a run, or several laid over each other: losses with topology updates marked, learning rate, gradient norm,
throughput, density, memory; and sum it up in a few lines.

smet plot runs/mine
smet plot runs/dense runs/smet --out compared.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.command import program
from pretrain.errors import DataError, UserError
from pretrain.paths import path_argument
from pretrain.records import misfit
from pretrain.screen import on_screen, refuse

from .figures import of_runs, panels
from .figures.runs import read_runs, summarize

PICTURES = (".png", ".pdf", ".svg", ".jpg")
SEVERAL = Path("runs.png")


def describe(said: dict[str, Any]) -> str:
    """The summary as lines for a person."""
    runs = said["runs"]
    lines = _one(runs[0]) if len(runs) == 1 else _table(runs)
    if said["left_out"]:
        lines.append(f"left out: {_reasons(said['left_out'])}")
    lines.append(f"plot: {said['plot']}")
    return "\n".join(lines)


def _reasons(left_out: dict[str, str]) -> str:
    """Panels by why they are left out."""
    reasons: dict[str, list[str]] = {}
    for panel, why in left_out.items():
        reasons.setdefault(why, []).append(panel)
    return "; ".join(f"{', '.join(panels)} ({why})" for why, panels in reasons.items())


def _one(summary: dict[str, Any]) -> list[str]:
    loss = _figure(summary["loss"], 4)
    lines = [f"{summary['steps']} steps, {summary['topology_updates']} topology updates, loss {loss}"]
    if "validation_perplexity" in summary:
        perplexity, loss = _figure(summary["validation_perplexity"], 2), _figure(summary["validation_loss"], 4)
        lines.append(f"validation perplexity {perplexity} (loss {loss})")
    lines.append(f"throughput {summary['tokens_per_second_median']:,.0f} tokens/s (median step)")
    if "memory_ratio" in summary:
        mine, dense = summary["sparse_layer_bytes_per_rank"] / 1e6, summary["same_layers_dense_bytes_per_rank"] / 1e6
        lines.append(
            f"sparse layers hold {mine:.2f} MB per rank at rest (measured); dense AdamW would hold {dense:.2f} MB: "
            f"{100 * summary['memory_ratio']:.1f} %"
        )
    if summary["skipped_steps"]:
        lines.append(f"{summary['skipped_steps']} steps were skipped for gradients that were not finite")
    return lines


def _table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line per run, in columns."""
    head = ["run", "steps", "loss", "validation", "tokens/s", "updates", "skipped", "MB at rest"]
    rows = [
        [
            run["name"], f"{run['steps']:,}", _figure(run["loss"], 4),
            _figure(run["validation_loss"], 4) if "validation_loss" in run else "-",
            f"{run['tokens_per_second_median']:,.0f}", str(run["topology_updates"]), str(run["skipped_steps"]),
            f"{run['sparse_layer_bytes_per_rank'] / 1e6:.2f}" if "memory_ratio" in run else "-",
        ]
        for run in runs
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    ]  # fmt: skip


def _figure(value: float | None, digits: int) -> str:
    """A number for a person; a run that diverged wrote null."""
    return "not finite" if value is None else f"{value:.{digits}f}"


def picture_of(
    folders: Sequence[Path], picture: Path, title: str | None = None, over: int | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Draw the run folders, and return what is in the picture.

    Args:
        over: steps to smooth over; None = as fits the longest run.
        names: of the runs in the picture; none = as much of their paths as tells them apart.

    Raises:
        DataError: one is no run, or is given twice.
        OSError: ``picture`` cannot be written.
    """
    if picture.suffix.lower() not in PICTURES:
        raise DataError(f"--out {picture} is no picture's name, expected one that ends in {', '.join(PICTURES)}")
    runs = read_runs(folders, names)
    made = panels.plan(runs, over)
    said = [{**summarize(run), "name": run.name} for run in runs]
    of_runs.draw(made, picture, title)
    return {"runs": said, "smoothed_over": made.over, "left_out": made.left_out, "plot": str(picture)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog=program(f"{__package__}.plot_run"),
        description="Draw a run, or several laid over each other, and sum it up in a few lines.",
        epilog="Faint lines are what was measured at every step, strong ones the mean of as many steps as the legend "
        "says. A panel of which nothing was measured is left out, which is told.",
    )
    made.add_argument("runs", type=path_argument, nargs="+", metavar="RUN_DIR", help="run folder (train.output_dir)")
    made.add_argument(
        "--out", "--output", type=path_argument, metavar="PICTURE",
        help=f"the file to write: {', '.join(PICTURES)} (default: RUN_DIR/run.png; of several runs, {SEVERAL})",
    )  # fmt: skip
    made.add_argument("--title", help="above the picture (default: the last losses)")
    made.add_argument(
        "--smooth", type=_steps, metavar="STEPS", help="smooth over so many steps; 1 = not at all (default: as fits)"
    )
    made.add_argument("--name", action="append", default=[], help="of a run in the picture; once for each, in order")
    made.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    return made


def _steps(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"is '{text}', expected a number of steps, 1 or more")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(arguments)
    picture = options.out or (options.runs[0] / "run.png" if len(options.runs) == 1 else SEVERAL)
    try:
        said = picture_of(options.runs, picture, options.title, options.smooth, options.name)
        text = json.dumps(_flat(said)) if options.json else describe(said)
    except (UserError, OSError) as error:
        return refuse(error)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        whose = f"the run {options.runs[0]}" if len(options.runs) == 1 else "one of the runs"
        print(f"error: a file of {whose} is damaged: {misfit(error)}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _flat(said: dict[str, Any]) -> dict[str, Any]:
    """Of one run, its summary and the rest in one object."""
    runs = said["runs"]
    return said if len(runs) > 1 else {**runs[0], **{key: value for key, value in said.items() if key != "runs"}}


if __name__ == "__main__":
    sys.exit(on_screen(main))
