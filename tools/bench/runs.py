"""Whole runs of the program: what a checkpoint costs a step, and the quickstart against its dense twin."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.callbacks.base import Callback
from pretrain.config import RunConfig, load_config
from pretrain.data.writer import IndexedWriter
from pretrain.layout import Layout
from pretrain.run import prepared
from pretrain.trainer import Trainer

from ..packages import CONFIGS
from . import operations
from .figures import Figure
from .options import Options
from .ranks import Rank
from .spread import median

SAVE_EVERY = 6
QUICKSTART_STEPS = 120
VOCABULARY = 4096
LINEAR = {"linear layers": ("_SparseMatmul",)}
"""What the products of layers that may be sparse lie in, dense ones too; head and embedding are none of them."""
HOOKS = ("on_start", "before_step", "before_update", "after_step", "on_end")


class Timed(Callback):
    """Seconds spent in another callback."""

    def __init__(self, inner: Callback, seconds: dict[str, float]):
        self.inner, self.name = inner, inner.name
        for hook in HOOKS:
            setattr(self, hook, self._clocked(getattr(inner, hook), seconds))
        self.close, self.state_dict, self.load_state_dict = (  # type: ignore[method-assign]
            inner.close, inner.state_dict, inner.load_state_dict,
        )  # fmt: skip

    def _clocked(self, hook: Callable[..., None], seconds: dict[str, float]) -> Callable[..., None]:
        def clocked(*arguments: Any) -> None:
            begin = time.perf_counter()
            hook(*arguments)
            seconds[self.name] += time.perf_counter() - begin

        return clocked


class Steps(Callback):
    """Seconds from one step's end to the next one's: steps with everything that callbacks do for them."""

    name = "steps"

    def __init__(self, tick: Callable[[], Any]):
        self.tick = tick
        self.seconds: list[float] = []
        self._last = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Stop it, and start it again."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        self.tick()


def main(rank: Rank) -> dict[str, Any]:
    """Both measurements; plain data. Collective."""
    return {"saving": checkpoint_steps(rank), "quickstart": quickstart(rank)}


def ticks(options: Options) -> int:
    """Steps of all runs together."""
    return _saving_steps(options) + 2 * _quickstart_steps(options)


def _saving_steps(options: Options) -> int:
    return (2 if options.quick else 4) * SAVE_EVERY + 1


def _quickstart_steps(options: Options) -> int:
    return 6 if options.quick else QUICKSTART_STEPS


def checkpoint_steps(rank: Rank) -> dict[str, list[float]]:
    """Seconds of steps that start a save, of those beside a save, and of all others. Collective."""
    options = rank.options
    config = options.config(rank.folder / "run")
    config = options.config(rank.folder / "run", corpus(rank.folder, "saving", config.model.vocab_size, rank.layout))
    steps = _saving_steps(options)
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps, consistency_interval=0),
        checkpoint=dataclasses.replace(config.checkpoint, interval=SAVE_EVERY, keep_last=1),
    )
    _, seconds, _, _ = _run(config, rank)
    starts = range(SAVE_EVERY, steps, SAVE_EVERY)  # the save after step n is begun at the top of step n + 1
    beside = {start + after for start in starts for after in (1, 2)}
    return {
        "starting": [seconds[n] for n in starts],
        "beside": [seconds[n] for n in sorted(beside) if n < steps],
        "normal": [seconds[n] for n in range(2, steps) if n not in starts and n not in beside],
    }


def quickstart(rank: Rank) -> dict[str, Any]:
    """Tokens per second of the quickstart's run, dense and as it is set, with its parts. Collective."""
    found = {}
    for side, overrides in (("dense", ["sparsity.method=dense", "sparsity.density=1.0"]), ("SMET", [])):
        config = _quickstart_config(rank, side, overrides)
        all_of_it, seconds, parts, trainer = _run(config, rank)
        tokens = config.train.steps * config.train.global_batch_size * config.data.seq_length
        parts = {"steps": all_of_it - sum(parts.values()), **parts}
        found[side] = {
            "tokens_per_second": tokens / all_of_it,
            "step_seconds": statistics.median(seconds),
            "parts": {name: part / all_of_it for name, part in parts.items()},
            "linear_layers": _linear_share(trainer),
        }
    return found


def _linear_share(trainer: Trainer) -> float:
    """Share of the linear layers in the CPU time of a step on this rank. Collective."""
    config, layout = trainer.config, trainer.layout
    shape = config.train.micro_batch_size, config.data.seq_length + 1
    batches = [torch.randint(0, VOCABULARY, shape) for _ in range(config.accumulation(layout.dp_size))]
    spent = operations.profiled(lambda: trainer.engine.train_step(batches), layout, LINEAR)
    return spent["linear layers"] / sum(spent.values())


def _quickstart_config(rank: Rank, side: str, overrides: list[str]) -> RunConfig:
    quick = rank.options.quick
    train, validation = (corpus(rank.folder, name, VOCABULARY, rank.layout) for name in ("train", "validation"))
    steps = _quickstart_steps(rank.options)
    interval = steps // 3
    given = [
        f"data.train={train}", f"data.validation={validation}", "data.tokenizer=null",
        f"train.output_dir={rank.folder / side}", f"train.steps={steps}", f"train.device={rank.options.device}",
        f"evaluation.interval={interval}", f"checkpoint.interval={interval}",
    ]  # fmt: skip
    small = [
        "model.hidden_size=64", "model.intermediate_size=64", "model.num_hidden_layers=1", "optimizer.warmup_steps=0",
        "data.seq_length=32", "evaluation.samples=16",
    ]  # fmt: skip
    return load_config(CONFIGS / "quickstart.yaml", [*given, *(small if quick else []), *overrides])


def _run(config: RunConfig, rank: Rank) -> tuple[float, list[float], dict[str, float], Trainer]:
    """Seconds of the whole run, of every step, and by callback; and what trained. Collective."""
    parts: dict[str, float] = defaultdict(float)
    steps = Steps(rank.tick)
    with contextlib.redirect_stdout(io.StringIO()), prepared(config, rank.layout) as trainer:
        trainer.callbacks = [*(Timed(callback, parts) for callback in trainer.callbacks), steps]
        rank.layout.barrier()
        begin = time.perf_counter()
        trainer.fit()
        spent = time.perf_counter() - begin
    return spent, steps.seconds, dict(parts), trainer


def corpus(folder: Path, name: str, vocabulary: int, layout: Layout) -> str:
    """The prefix of a corpus of random tokens in ``folder``. Collective."""
    prefix = folder / name
    if layout.is_main and not prefix.with_suffix(".idx").exists():
        tokens = np.random.default_rng(0).integers(0, vocabulary, 1 << 20)
        with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
            for document in np.array_split(tokens.astype(np.uint16), 64):
                writer.add(document)
    layout.barrier()
    return str(prefix)


def checkpoint_figures(seconds: dict[str, list[float]]) -> list[Figure]:
    """From what ``checkpoint_steps`` returned."""
    normal, beside = statistics.median(seconds["normal"]), statistics.median(seconds["beside"])
    note = (
        f"from one step's end to the next, {len(seconds['starting'])} saves; the two steps after one, while it is "
        f"written by the same cores, take {beside / normal:.2f} of a normal one"
    )
    return [median("checkpoint_step", [value / normal for value in seconds["starting"]], note)]


def quickstart_figures(found: dict[str, Any]) -> list[Figure]:
    """From what ``quickstart`` returned."""
    own, dense = (found[side]["tokens_per_second"] for side in ("SMET", "dense"))
    note = (
        f"{own:,.0f} against {dense:,.0f} tokens per second over the run, with evaluations, checkpoints and topology "
        "updates; the dense run is the same program with sparsity.method=dense"
    )
    return [Figure(name="quickstart_throughput", value=own / dense, note=note)]
