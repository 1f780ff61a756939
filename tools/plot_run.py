"""Draw a run: loss with topology updates marked, density, throughput; and sum it up in a few lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pretrain.command import program
from pretrain.errors import DataError, UserError
from pretrain.paths import path_argument, resolved
from pretrain.records import Rows, misfit
from pretrain.run_folder.reader import METRICS, TOPOLOGY, RunReader
from pretrain.screen import on_screen, refuse

PICTURES = (".png", ".pdf", ".svg", ".jpg")
NUMBERS = ("step", "loss", "tokens_per_second")


def read_run(folder: Path) -> tuple[Rows, Rows, dict[str, Any]]:
    """(metrics, topology updates, memory report) of a run folder.

    Raises:
        DataError: the folder holds no run, or one without a finished step.
    """
    run = RunReader(folder)
    rows = run.rows(METRICS, NUMBERS)
    if not rows:
        raise DataError(f"{folder} holds no finished step in {METRICS}, expected a run folder (train.output_dir)")
    return rows, run.rows(TOPOLOGY, ("step", "fraction")), run.memory()


def summarize(folder: Path, rows: Rows, updates: Rows, memory: dict[str, Any]) -> dict[str, Any]:
    """The figures a reader wants first, as measured."""
    validated = [row for row in rows if "validation_loss" in row]
    steady = sorted(row["tokens_per_second"] for row in rows[len(rows) // 10 :])
    summary: dict[str, Any] = {
        "run": str(folder),
        "steps": rows[-1]["step"],
        "loss": rows[-1]["loss"],
        "tokens_per_second_median": steady[len(steady) // 2],
        "topology_updates": len(updates),
        "skipped_steps": sum(bool(row.get("skipped")) for row in rows),
    }
    if validated:
        summary["validation_loss"] = validated[-1]["validation_loss"]
        summary["validation_perplexity"] = validated[-1]["validation_perplexity"]
    if memory:
        layers = memory["sparse_layers"]
        summary["sparse_layer_bytes_per_rank"] = layers["measured"]
        summary["same_layers_dense_bytes_per_rank"] = layers["planned_if_dense"]
        summary["memory_ratio"] = layers["ratio_to_dense"]
    return summary


def describe(summary: dict[str, Any], picture: Path) -> str:
    """The summary as lines for a person."""
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
    lines.append(f"plot: {picture}")
    return "\n".join(lines)


def _figure(value: float | None, digits: int) -> str:
    """A number for a person; a run that diverged wrote null."""
    return "not finite" if value is None else f"{value:.{digits}f}"


def draw(rows: Rows, updates: Rows, picture: Path, title: str) -> None:
    """Write the plot: one column of panels that share the axis of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 9), sharex=True, height_ratios=(3, 1, 1), layout="constrained")
    loss_axis, density_axis, speed_axis = axes
    steps = [row["step"] for row in rows]
    for update in updates:
        loss_axis.axvline(update["step"], color="0.8", linewidth=1, zorder=0)
    if updates:
        loss_axis.plot([], [], color="0.8", label="topology update")
    loss_axis.plot(steps, [row["loss"] for row in rows], color="C0", linewidth=0.8, alpha=0.7, label="training loss")
    validated = [row for row in rows if "validation_loss" in row]
    loss_axis.plot(
        [row["step"] for row in validated], [row["validation_loss"] for row in validated], "o-", color="C3",
        markersize=4, label="validation loss",
    )  # fmt: skip
    loss_axis.set_ylabel("loss (nats per token)")
    loss_axis.legend(loc="upper right", frameon=False)
    loss_axis.set_title(title)
    _draw_topology(density_axis, updates)
    speed_axis.plot(steps, [row["tokens_per_second"] for row in rows], color="C2", linewidth=0.8)
    speed_axis.set_ylabel("tokens/s")
    speed_axis.set_ylim(bottom=0)
    speed_axis.set_xlabel("optimizer step")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def _draw_topology(axis: Any, updates: Rows) -> None:
    """Density of the layers (a band where it differs) and the share of tiles moved by each update."""
    axis.set_ylabel("density")
    axis.set_ylim(0, 1)
    if not updates:
        axis.text(0.5, 0.5, "no topology updates", transform=axis.transAxes, ha="center", va="center", color="0.5")
        return
    steps = [update["step"] for update in updates]
    low = [min(update["density"].values()) for update in updates]
    high = [max(update["density"].values()) for update in updates]
    axis.fill_between(steps, low, high, color="C0", alpha=0.3, linewidth=0)
    axis.plot(steps, low, "o-", color="C0", markersize=3, label="density (lowest and highest layer)")
    axis.plot(steps, high, "-", color="C0")
    axis.plot(steps, [update["fraction"] for update in updates], "s--", color="C1", markersize=3, label="tiles moved")
    axis.legend(loc="upper right", frameon=False, ncols=2)


def picture_of(run: Path, picture: Path) -> dict[str, Any]:
    """Draw the run folder ``run`` and return its summary.

    Raises:
        DataError: it is no run.
        OSError: ``picture`` cannot be written.
    """
    if picture.suffix.lower() not in PICTURES:
        raise DataError(f"--output {picture} is no picture's name, expected one that ends in {', '.join(PICTURES)}")
    rows, updates, memory = read_run(run)
    draw(rows, updates, picture, resolved(run).name)
    return {**summarize(run, rows, updates, memory), "plot": str(picture)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program(f"{__package__}.plot_run"), description=__doc__)
    parser.add_argument("run", type=path_argument, metavar="RUN_DIR", help="run folder (train.output_dir)")
    parser.add_argument("--output", type=path_argument, help="the PNG to write (default: RUN_DIR/run.png)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    options = parser.parse_args(arguments)
    picture = options.output or options.run / "run.png"
    try:
        summary = picture_of(options.run, picture)
        text = json.dumps(summary) if options.json else describe(summary, picture)
    except (UserError, OSError) as error:
        return refuse(error)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        print(f"error: a file of the run {options.run} is damaged: {misfit(error)}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(on_screen(main))
