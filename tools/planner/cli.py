"""The command line of ``python -m tools.plan``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields

from pretrain.command import program
from pretrain.config import RunConfig, load_config
from pretrain.environment import check_world
from pretrain.errors import LaunchError, UserError
from pretrain.numbers import byte_size, finite
from pretrain.plan import RankPlan
from pretrain.plan.memory import offloaded
from pretrain.plan.table import human, layout_line, table
from pretrain.screen import refuse
from smet.kernels import sides

from ..packages import named
from .search import Found, search
from .timing import Machine, StepTime, slowest_stage


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line to its parts."""
    parser = argparse.ArgumentParser(
        prog=program(named("tools.plan")),
        description="Bytes, traffic and FLOPs of every rank, dense AdamW beside the run; or the layouts that fit.",
        epilog="Bytes sent are those of one rank under ring algorithms. Products are computed dense whatever the "
        "density, but for tiles (sparsity.block) large enough to be multiplied alone, where FLOPs go with it. Times "
        "are predictions from the figures given here.",
    )
    parser.add_argument("config", help="run file (YAML), such as configs/7b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. parallel.tensor=2 sparsity.density=0.1")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks; default parallel.tensor x pipeline")
    parser.add_argument("--json", action="store_true", help="print JSON: every stage, dense and as set")
    parser.add_argument("--search", action="store_true", help="rank the layouts that fit --gpus of --memory")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to search for; default --world-size")
    parser.add_argument(
        "--memory", type=byte_size, default="80GB", help="memory of one GPU, such as 80GB or 40GiB; default 80GB"
    )
    parser.add_argument("--reserve", type=finite, default=0.1, help="fraction of it to leave free; default 0.1")
    parser.add_argument("--top", type=int, default=10, help="layouts to print; default 10")
    for option in fields(Machine):
        flag = "--" + option.name.replace("_", "-")
        kind = finite if isinstance(option.default, float) else type(option.default)
        parser.add_argument(flag, type=kind, default=option.default, help=f"default {option.default:g}")
    return parser.parse_intermixed_args(arguments)


def report(config: RunConfig, world: int, machine: Machine, as_json: bool) -> str:
    """All stages, every figure of the fullest one, and the predicted time; or all of it as JSON."""
    check_world(world, config)
    plans, time = slowest_stage(config, world, machine)
    dense_plans, dense_time = slowest_stage(config, world, machine, dense=True)
    if as_json:
        return json.dumps(
            {
                "world_size": world,
                "machine": vars(machine),
                "stages": [plan.to_json() for plan in plans],
                "dense_stages": [plan.to_json() for plan in dense_plans],
                "step_time": {**vars(time), "total": time.total},
                "dense_step_time": {**vars(dense_time), "total": dense_time.total},
            }
        )
    fullest = max(plans, key=lambda plan: plan.peak)
    lines = [layout_line(config, world), ""]
    if len(plans) > 1:
        lines += ["| stage | blocks | at rest | peak | dense peak |", "| ---: | --- | ---: | ---: | ---: |"]
        for plan, dense in zip(plans, dense_plans, strict=True):
            blocks = f"{plan.blocks[0]} to {plan.blocks[-1]}"
            cells = (str(plan.stage), blocks, human(plan.rest), human(plan.peak), human(dense.peak))
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"Stage {fullest.stage}, the fullest:", ""]
    lines += [table(fullest, dense_plans[fullest.stage]), "", *times(config, fullest, time, dense_time, machine)]
    return "\n".join(lines)


def times(config: RunConfig, plan: RankPlan, time: StepTime, dense: StepTime, machine: Machine) -> list[str]:
    """The predicted step time of the slowest stage, by what it goes into."""
    tiles_note = f" {over_tiles(config)}" if plan.flops.over_tiles else ""
    tokens = config.train.global_batch_size * config.data.seq_length
    lines = ["| predicted seconds per step | dense AdamW | this run |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {getattr(dense, name):.3g} | {value:.3g} |" for name, value in vars(time).items()]
    lines.append(f"| **all** | {dense.total:.3g} | {time.total:.3g} |")
    lines.append(f"| tokens per second, all GPUs | {tokens / dense.total:,.0f} | {tokens / time.total:,.0f} |")
    return [*lines, "", machine.describe(offloaded(config)) + tiles_note]


def over_tiles(config: RunConfig) -> str:
    """What products over tiles are reckoned with, in a sentence."""
    rows, cols = config.sparsity.block
    slower = sides.BREAK_EVEN[min(rows, cols)]
    return (
        f"Products over tiles of {rows} x {cols} take {slower:g} times as long for each operation as those of whole "
        "matrices, as measured on one GPU (docs/performance-gpu.md)."
    )


def ranking(found: list[Found], top: int, config: RunConfig, machine: Machine) -> str:
    """The fastest layouts as a Markdown table."""
    lines = [
        "| tensor | pipeline | data | ZeRO | micro-batch | sequence | checkpointing | peak | s / step | tokens / s |",
        "| ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for one in found[:top]:
        given = one.settings
        yes = {True: "yes", False: "no"}
        cells = (
            given["parallel.tensor"], given["parallel.pipeline"], one.data, given["parallel.zero_stage"],
            given["train.micro_batch_size"], yes[given["parallel.sequence"]],
            yes[given["train.activation_checkpointing"]], human(one.peak), f"{one.time.total:.3g}",
            f"{one.tokens_per_second:,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    best = " ".join(f"{name}={str(value).lower()}" for name, value in found[0].settings.items())
    lines += ["", f"{len(found)} layouts fit. The first one's settings: `{best}`", ""]
    return "\n".join([*lines, machine.describe(offloaded(config))])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        machine = Machine(**{option.name: getattr(options, option.name) for option in fields(Machine)})
        world = options.gpus or options.world_size
        config = load_config(options.config, options.overrides, world_size=world)
        if options.search:
            if world is None:
                raise LaunchError("--search needs to know how many GPUs there are; give --gpus N")
            found = search(config, world, options.memory, machine, options.reserve)
            if options.json:
                print(json.dumps([one.to_json() for one in found]))
            else:
                print(ranking(found, options.top, config, machine))
        else:
            world = world or config.parallel.tensor * config.parallel.pipeline
            print(report(config, world, machine, options.json))
    except UserError as error:
        return refuse(error)
    return 0
