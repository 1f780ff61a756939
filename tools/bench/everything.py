"""One run of the benchmark: every measurement in turn, and what came of it as plain data."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from statistics import median
from typing import Any

from pretrain.plan import plan_rank

from . import batches, gpu, jobs, layer, machine, memory, optimizer, ranks, runs, scaling, steps, traffic
from .engines import DENSE_OPTIMIZERS
from .figures import SPECS, Figure, missed
from .options import Options
from .spread import median as median_figure
from .spread import ratios


def _engines(options: Options) -> tuple[dict[str, Any], steps.Seconds, dict[str, steps.Seconds]]:
    """What the first session found, and the step times of all sessions: at the size asked for, and by fewer tokens."""
    found = ranks.run(jobs.everything, options, "engines", jobs.ticks(options))
    more = [
        ranks.run(jobs.steps_only, options, f"steps {number}", jobs.step_ticks(options))
        for number in range(2, steps.sessions(options) + 1)
    ]
    seconds = steps.pooled([found["seconds"], *(part["seconds"] for part in more)])
    smaller = {
        tokens: steps.pooled([part, *(other["smaller"][tokens] for other in more)])
        for tokens, part in found["smaller"].items()
    }
    return found, seconds, smaller


def measure(options: Options) -> dict[str, Any]:
    """Everything. Starts processes; nothing is left behind.

    Raises:
        UserError: settings that do not fit each other.
    """
    begin, load = time.perf_counter(), machine.load()
    described = machine.describe(options.device)
    layers = layer.measure(options)
    found, seconds, smaller = _engines(options)
    peaks = {
        "dense": ranks.run(memory.peak_dense, options, "memory, dense", memory.PEAK_STEPS),
        "SMET": ranks.run(memory.peak_smet, options, "memory, SMET", memory.PEAK_STEPS),
    }
    whole = ranks.run(runs.main, options, "runs", runs.ticks(options))
    saving, quickstart = whole["saving"], whole["quickstart"]

    dense = min((name for name in DENSE_OPTIMIZERS if name in found["at_rest"]), key=_median_of(seconds["wall"]))
    other = next((name for name in DENSE_OPTIMIZERS if name in found["at_rest"] and name != dense), None)
    config = options.config(Path("unused"))
    plan = plan_rank(config, options.ranks)
    figures = [
        *steps.figures(seconds, dense, other),
        *traffic.figures(found["sent"], dense, config, options.ranks),
        *memory.figures(found["at_rest"], dense, peaks),
        *optimizer.figures(found["optimizer"]),
        *layer.figures(layers),
        *runs.checkpoint_figures(saving),
        *runs.quickstart_figures(quickstart),
        *gpu.figures(options),
        *_large_model(options),
    ]
    order = list(SPECS)
    figures.sort(key=lambda figure: order.index(figure.name))
    return {
        "options": {
            **{key: value for key, value in dataclasses.asdict(options).items() if key != "machine"},
            "sequence": options.sequence,
        },
        "machine": described,
        "sessions": steps.sessions(options),
        "load": [load, machine.load()],
        "seconds": time.perf_counter() - begin,
        "dense_optimizer": dense,
        "figures": [figure.to_json() for figure in figures],
        "missed": missed(figures),
        "weights": {"sparse": plan.sparse_total, "all": plan.total_weights},
        "where_time_goes": found["where"],
        "operations": found["operations"],
        "batches": batches.table({str(options.micro_batch * options.sequence): seconds, **smaller}, dense),
        "bytes_sent": found["sent"],
        "bytes_at_rest": found["at_rest"],
        "quickstart": quickstart,
        "scaling": scaling.predict(options),
        "assumptions": dataclasses.asdict(options.machine),
        "samples": {"seconds": seconds, "optimizer": found["optimizer"], "layers": layers, "saving": saving},
    }


def _median_of(seconds: dict[str, list[float]]) -> Any:
    return lambda name: median(seconds[name])


def _large_model(options: Options) -> list[Figure]:
    """The step of the 350m model on one GPU, where there is one."""
    if options.device != "cuda":
        return []  # ``gpu.figures`` says so
    large = dataclasses.replace(options, model="350m", ranks=1)
    seconds = ranks.run(jobs.steps_only, large, "350m", jobs.step_ticks(large))["seconds"]["wall"]
    dense = DENSE_OPTIMIZERS[0]
    note = f"one GPU, {large.micro_batch} sequences of {large.sequence} tokens, against dense with {dense}"
    return [median_figure("gpu_step_350m", ratios(seconds["SMET"], seconds[dense]), note)]
