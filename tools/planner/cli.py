"""The command line of ``python -m tools.plan``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import fields, replace

from pretrain.command import program
from pretrain.config import RunConfig, load_config
from pretrain.environment import check_world
from pretrain.errors import LaunchError, UserError
from pretrain.numbers import byte_size, count, finite
from pretrain.plan import RankPlan
from pretrain.plan.devices import DEVICES
from pretrain.plan.memory import offloaded
from pretrain.plan.table import human, layout_line, table
from pretrain.screen import refuse

from .. import packages
from ..terminal import show
from .budget import Budget
from .budget import table as budget_table
from .host import waiting
from .machines import Named, machine_of
from .search import RESERVE, Found, applied, held, search
from .timing import Machine, StepTime, products_by_backend, slower_over_tiles, slowest_stage
from .which import HONEST, which
from .which import table as which_table

TOP = 10


def _fraction(text: str) -> float:
    value = finite(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected a fraction in [0, 1)")
    return value


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line to its parts."""
    parser = argparse.ArgumentParser(
        prog=program(packages.named("tools.plan")),
        description="Bytes, traffic and FLOPs of every rank, dense AdamW beside the run; or the layouts that fit.",
        epilog="Bytes sent are those of one rank under ring algorithms. Products are computed dense whatever the "
        "density, but for tiles (sparsity.block) large enough to be multiplied alone, where FLOPs go with it. Times "
        "are predictions from the figures given here.",
    )
    parser.add_argument("config", nargs="?", help="run file (YAML), such as configs/7b.yaml; not with --which")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. parallel.tensor=2 sparsity.density=0.1")
    parser.add_argument("--world-size", type=count, metavar="N", help="ranks; default parallel.tensor x pipeline")
    parser.add_argument("--json", action="store_true", help="print JSON: every stage, dense and as set")
    parser.add_argument(
        "--search",
        action="store_true",
        help="rank the layouts that fit --gpus of --memory; overrides are kept",
    )
    parser.add_argument(
        "--which", action="store_true", help="which of the models in configs/ --gpus can train, dense and sparse"
    )
    parser.add_argument("--gpus", type=count, metavar="N", help="GPUs to search for; default --world-size")
    parser.add_argument(
        "--gpu", metavar="NAME", help=f"{', '.join(DEVICES)}; or cpu: this host's processor, which is measured"
    )
    parser.add_argument("--price", type=finite, metavar="P", help="of one GPU hour: what the whole run costs")
    parser.add_argument(
        "--memory", type=byte_size, help="memory of one GPU, such as 80GB or 40GiB; default that of --gpu, else 80GB"
    )
    parser.add_argument("--reserve", type=_fraction, help=f"fraction of it to leave free; default {RESERVE}")
    parser.add_argument("--top", type=count, help=f"layouts to print; default {TOP}")
    for option in fields(Machine):
        flag = "--" + option.name.replace("_", "-")
        kind = finite if isinstance(option.default, float) else type(option.default)
        parser.add_argument(flag, type=kind, help=f"default that of --gpu, else {option.default:g}")
    return parser.parse_intermixed_args(arguments)


def report(config: RunConfig, world: int, named: Named, price: float | None, as_json: bool) -> str:
    """All stages, every figure of the fullest one, the predicted time, what the whole run takes; or that as JSON."""
    check_world(world, config)
    machine = named.machine
    plans, time = slowest_stage(config, world, machine)
    dense_plans, dense_time = slowest_stage(config, world, machine, dense=True)
    budgets = [
        Budget.of(config, world, seconds.total, price, dense)
        for seconds, dense in ((dense_time, True), (time, False))
    ]  # fmt: skip
    if as_json:
        return json.dumps(
            {
                "world_size": world,
                "machine": vars(machine),
                "assumed": named.note,
                "stages": [plan.to_json() for plan in plans],
                "dense_stages": [plan.to_json() for plan in dense_plans],
                "step_time": {**vars(time), "total": time.total},
                "dense_step_time": {**vars(dense_time), "total": dense_time.total},
                "budget": budgets[1].to_json(),
                "dense_budget": budgets[0].to_json(),
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
    lines += [table(fullest, dense_plans[fullest.stage]), "", *times(config, time, dense_time)]
    waits = waiting(config, world, time.total)
    lines += [
        "",
        *budget_table(budgets, ("dense AdamW", "this run")),
        "",
        f"{footnote(config, fullest, named)} {waits}".rstrip(),
    ]
    return "\n".join(lines)


def times(config: RunConfig, time: StepTime, dense: StepTime) -> list[str]:
    """The predicted step time of the slowest stage, by what it goes into."""
    tokens = config.train.global_batch_size * config.data.seq_length
    lines = ["| predicted seconds per step | dense AdamW | this run |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {getattr(dense, name):.3g} | {value:.3g} |" for name, value in vars(time).items()]
    lines.append(f"| **all** | {dense.total:.3g} | {time.total:.3g} |")
    return [*lines, f"| tokens per second, all GPUs | {tokens / dense.total:,.0f} | {tokens / time.total:,.0f} |"]


def footnote(config: RunConfig, plan: RankPlan, named: Named) -> str:
    """What the times rest on."""
    parts = [named.describe(offloaded(config))]
    if plan.flops.over_tiles:
        seconds = products_by_backend(config, plan, named.machine)
        parts.append(over_tiles(config))
        parts.append(f"Of the products' time {seconds['tiles']:.3g} s are over tiles, {seconds['dense']:.3g} s dense.")
    return " ".join(parts)


def over_tiles(config: RunConfig) -> str:
    """What products over tiles are reckoned with, in a sentence."""
    rows, cols = config.sparsity.block
    where = "is assumed of CPUs" if config.train.device == "cpu" else "measured on one GPU (docs/performance-gpu.md)"
    slower = f"{slower_over_tiles(config):.3g}"
    return (
        f"Products over tiles of {rows} x {cols} take {slower} times as long for each operation as those of whole "
        f"matrices, as {where}."
    )


def ranking(found: list[Found], top: int, config: RunConfig, named: Named, budget: Budget) -> str:
    """The fastest layouts as a Markdown table, and what the first one takes."""
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
    gpus = math.prod(found[0].settings[f"parallel.{name}"] for name in ("tensor", "pipeline")) * found[0].data
    notes = [named.describe(offloaded(config)), waiting(applied(config, found[0]), gpus, found[0].time.total)]
    return "\n".join([*lines, *budget_table([budget], ("the first one",)), "", " ".join(notes).rstrip()])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_idle(options)
        show(_which(options) if options.which else _plan(options))
    except UserError as error:
        return refuse(error)
    return 0


def _refuse_idle(options: argparse.Namespace) -> None:
    """Options that would have no effect.

    Raises:
        LaunchError: there are some.
    """
    if None not in (options.gpus, options.world_size) and options.gpus != options.world_size:
        raise LaunchError(f"--gpus is {options.gpus} and --world-size {options.world_size}, expected one of them")
    if options.search and options.which:
        raise LaunchError("--search is about one run file and --which about all sizes, expected one of them")
    idle = [] if options.search else ["top"] if options.which else ["memory", "reserve", "top"]
    if given := [f"--{name}" for name in idle if getattr(options, name) is not None]:
        raise LaunchError(f"{', '.join(given)} without --search has no effect")


def _plan(options: argparse.Namespace) -> str:
    if options.config is None:
        raise LaunchError("no run file is given, expected one such as configs/7b.yaml; or --which for all sizes")
    world = options.gpus or options.world_size
    config = load_config(options.config, options.overrides, world_size=world)
    ranks = world or config.parallel.tensor * config.parallel.pipeline
    named = _machine(options, ranks, config)
    if named.is_cpu:
        config = replace(config, train=replace(config.train, device="cpu"))
    if not options.search:
        return report(config, ranks, named, _price(options), options.json)
    if world is None:
        raise LaunchError("--search needs to know how many GPUs there are; give --gpus N")
    memory, own = options.memory or named.memory, held(config, options.overrides)
    found = search(config, world, memory, named.machine, _reserve(options), held=own)
    budgets = [Budget.of(config, world, one.time.total, _price(options)) for one in found]
    if options.json:
        both = zip(found, budgets, strict=True)
        return json.dumps([{**one.to_json(), "budget": budget.to_json()} for one, budget in both])
    return ranking(found, options.top or TOP, config, named, budgets[0])


def _which(options: argparse.Namespace) -> str:
    gpus = options.gpus or options.world_size
    if gpus is None:
        raise LaunchError("--which needs to know how many GPUs there are; give --gpus N, and --gpu NAME")
    overrides = [text for text in (options.config, *options.overrides) if text is not None]
    if files := [text for text in overrides if "=" not in text]:
        raise LaunchError(f"--which is about all sizes in configs/, expected no run file, found {files[0]}")
    named = _machine(options, gpus, None)
    answers = which(gpus, named, options.memory or named.memory, _reserve(options), _price(options), overrides)
    if options.json:
        return json.dumps([one.to_json() for one in answers])
    return "\n".join([which_table(answers), "", f"{named.describe()} {HONEST}"])


def _machine(options: argparse.Namespace, ranks: int, config: RunConfig | None) -> Named:
    names = [option.name for option in fields(Machine)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return machine_of(options.gpu, given, ranks, config)


def _reserve(options: argparse.Namespace) -> float:
    return RESERVE if options.reserve is None else options.reserve


def _price(options: argparse.Namespace) -> float | None:
    price: float | None = options.price
    if price is not None and price < 0:
        raise LaunchError(f"--price is {price:g}, expected the price of one GPU hour")
    return price
