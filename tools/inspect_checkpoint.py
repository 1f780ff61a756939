"""Verify a checkpoint and tell what it holds.

CHECKPOINT is a step folder, or a run or checkpoints folder (then its newest). Every file is compared with its
checksum; if one is damaged or missing, its name is printed and the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from pretrain.errors import CheckpointError
from pretrain.paths import path_argument
from pretrain.screen import on_screen
from smet.optim.ages import CLOSED
from smet.store import state_kind

from .checkpoints.cli import Report, add_family, byte_count, make_parser, run_tool
from .checkpoints.reader import Checkpoint

LINES = 10
"""Most lines that a person is shown of the ages."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("inspect_checkpoint", __doc__)
    parser.add_argument("checkpoint", type=path_argument, metavar="CHECKPOINT", help="step, checkpoints or run folder")
    add_family(parser)
    return parser


def inspect(options: argparse.Namespace) -> Report:
    """Everything there is to tell.

    Raises:
        UserError: no checkpoint, or a damaged one; names the file.
    """
    checkpoint = Checkpoint(options.checkpoint, options.family)
    manifest, state = checkpoint.manifest, checkpoint.state
    sparse = [weight for weight in checkpoint.weights if weight.layer and weight.is_sparse]
    opened = {w.name: checkpoint.open_tiles(w) * w.layer.grid.tile_size for w in sparse if w.layer}
    density = {w.layer.name: opened[w.name] / w.numel for w in sparse if w.layer}
    dense = sum(w.numel for w in sparse)
    return {
        "checkpoint": str(checkpoint.folder),
        "verified": True,
        "step": checkpoint.step,
        "written": manifest.get("written"),
        "layout": manifest.get("layout"),
        "versions": manifest.get("versions"),
        "git": manifest.get("git"),
        "consumed_samples": state["consumed_samples"],
        "topology_updates": state["topology"]["updates_done"],
        "parameters": sum(w.numel for w in checkpoint.weights),
        "parameters_stored": sum(w.stored for w in checkpoint.weights),
        "density_overall": sum(opened.values()) / dense if dense else 1.0,
        "closed": sum(w.stored for w in sparse) - sum(opened.values()),
        "density": density,
        "block": list(checkpoint.sparsity.block),
        "permute": checkpoint.sparsity.permute,
        "permutation": manifest.get("permutation"),
        "ages": ages(checkpoint),
        "bytes": sizes(checkpoint),
    }


def ages(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """How many active weights of the sparse layers became active after which step, oldest first.

    ``born`` 0 is the start; weights so old that their age makes no difference any more count there too.
    """
    names = [w.vector for w in checkpoint.weights if w.is_sparse and f"{w.vector}/birth" in checkpoint.vectors]
    counts = torch.zeros(256, dtype=torch.int64)
    for name in names:
        counts += checkpoint.vector(f"{name}/birth").bincount(minlength=256)
    if checkpoint.sparsity.falls:
        counts[CLOSED] = 0
    # A layer whose topology never changes stores no births: all its weights are as old as the run.
    unborn = sum(w.stored for w in checkpoint.weights if w.is_sparse and w.vector not in names)
    births = checkpoint.state["topology"]["ages"]["births"]
    by_step: dict[int, int] = {0: unborn}
    for code, count in enumerate(counts.tolist()):
        if count and births[code] is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.folder} has birth code {code}, which state.json does not know: it contradicts "
                "itself"
            )
        if count:
            born = int(births[code])  # codes that several births share stand at their middle
            by_step[born] = by_step.get(born, 0) + count
    total = sum(by_step.values())
    return [
        {"born": step, "age": checkpoint.step - step, "weights": count, "share": count / total}
        for step, count in sorted(by_step.items())
        if count
    ]


def sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes by kind: master weights, moments, ages, masks; and what the files need beyond them."""
    kinds = dict.fromkeys(("weights", "moments", "ages", "masks"), 0)
    for name, (length, dtype) in checkpoint.vectors.items():
        parameter, _, key = name.partition("/")
        kind = state_kind(key) if key else "masks" if parameter.endswith(".mask") else "weights"
        kinds[kind] += length * dtype.itemsize
    on_disk = sum(entry["bytes"] for entry in checkpoint.manifest["files"].values())
    return {**kinds, "other": on_disk - sum(kinds.values()), "total": on_disk}


def describe(report: Report) -> str:
    """The report for a person."""
    layout = dict(report["layout"] or {})
    ranks, stage = layout.pop("world_size", "unknown"), layout.pop("zero_stage", None)
    ranks = "1 rank" if ranks == 1 else f"{ranks} ranks"
    degrees = ", ".join([f"{key} {size}" for key, size in layout.items()] + ([f"ZeRO-{stage}"] if stage else []))
    versions = ", ".join(f"{key} {value}" for key, value in (report["versions"] or {}).items())
    lines = [
        f"{report['checkpoint']}: whole (all checksums match)",
        f"step {report['step']}, {report['consumed_samples']:,} samples, {report['topology_updates']} topology updates",
        f"written {report['written']} by {ranks} ({degrees}); {versions}; git {(report['git'] or 'unknown')[:12]}",
        f"{report['parameters']:,} parameters, {report['parameters_stored']:,} stored; sparse layers at density "
        f"{report['density_overall']:.4g}, block {report['block'][0]}x{report['block'][1]}"
        + (f", permuted {report['permute']} (digest {report['permutation'][:12]})" if report["permutation"] else "")
        + (f"; {report['closed']:,} weights of closed tiles are stored beside that" if report["closed"] else ""),
        *_density_lines(report["density"]),
        *_age_lines(report["ages"]),
        "bytes: " + ", ".join(f"{kind} {byte_count(size)}" for kind, size in report["bytes"].items()),
    ]
    return "\n".join(lines)


def _density_lines(density: dict[str, float]) -> list[str]:
    """One line per kind of layer: the decoder layers of one kind are alike."""
    kinds: dict[str, list[float]] = {}
    for layer, value in density.items():
        kinds.setdefault(".".join("*" if part.isdigit() else part for part in layer.split(".")), []).append(value)
    return [
        f"  {kind}: {min(values):.4g}" + (f" to {max(values):.4g}" if max(values) > min(values) else "")
        for kind, values in kinds.items()
    ]


def _age_lines(rows: list[dict[str, Any]]) -> list[str]:
    """At most ``LINES`` lines; of more births, neighbours share one."""
    if not rows:
        return []
    first, rest = rows[:1], rows[1:]
    width = -(-len(rest) // (LINES - 1)) or 1
    lines = ["active weights of the sparse layers by the step after which they became active:"]
    for group in [first, *(rest[at : at + width] for at in range(0, len(rest), width))]:
        low, high = group[0]["born"], group[-1]["born"]
        born = "at the start (or long settled)" if high == 0 else f"{low}" if low == high else f"{low} to {high}"
        count, share = sum(row["weights"] for row in group), sum(row["share"] for row in group)
        lines.append(f"  {born}: {count:,} ({100 * share:.1f} %)")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_tool(build_parser().parse_args(argv), inspect, describe)


if __name__ == "__main__":
    sys.exit(on_screen(main))
