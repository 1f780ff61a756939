"""What a machine achieves: of a GPU by its name, a part of what its data sheet says; of this CPU, what is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pretrain.config import RunConfig
from pretrain.errors import ConfigError, nearest
from pretrain.models import family_of, inventory_of
from pretrain.plan import blocks_of
from pretrain.plan.compute import layer_flops
from pretrain.plan.devices import DEVICES

from ..cores import cores
from .timing import Machine

PRODUCTS, MEMORY, LINKS = 0.4, 0.6, 0.67
"""Parts of the data sheet's figures that a step is taken to achieve. Of products: a whole dense step on one H200
reached 0.43 of them (docs/performance-gpu.md); larger models reach more, small ones and slow networks less."""
CPU = "cpu"
UNNAMED = 80 * 10**9
SECONDS = 0.3
"""How long each of two things is measured on a CPU."""
LAYER_FLOPS = 1e11
"""At most, of what is measured of a run: a large model's layer takes a CPU long enough."""


@dataclass(frozen=True)
class Named:
    """A machine, and what is known about one of its GPUs."""

    machine: Machine
    memory: int
    """Bytes of one GPU, or a process's share of this host's memory."""
    note: str = ""
    """Where the figures are from, in a sentence; empty: from nowhere but the defaults of ``Machine``."""
    is_cpu: bool = False

    def describe(self, offloaded: bool = False) -> str:
        """What predictions rest on."""
        source = "Measured per process" if self.is_cpu else "Assumed per GPU"
        return " ".join(part for part in (self.machine.describe(offloaded, source), self.note) if part)


def find_name(text: str) -> str:
    """The name in the table that ``text`` means, or ``cpu``; in any case, ``4090`` for ``RTX-4090``.

    Raises:
        ConfigError: there is none.
    """
    wanted = text.strip().lower().replace(" ", "-").replace("_", "-")
    if wanted in (CPU, "this-cpu"):
        return CPU
    names = [name for name in DEVICES if name.lower() == wanted] or [
        name for name in DEVICES if name.lower().endswith(f"-{wanted}") and wanted.isdigit()
    ]
    if len(names) == 1:
        return names[0]
    known = [*DEVICES, CPU]
    near = nearest(wanted.upper(), known) or nearest(wanted, known)
    raise ConfigError(
        f"--gpu is '{text}', expected one of {', '.join(DEVICES)}, or cpu for this host's processor{near}"
    )


def machine_of(
    name: str | None, given: Mapping[str, float], processes: int = 1, config: RunConfig | None = None
) -> Named:
    """The machine that ``name`` means, with the figures ``given`` on top.

    Args:
        processes: that share this host, where it is a CPU.
        config: whose decoder layer a CPU is measured with; without one, products of whole matrices.

    Raises:
        ConfigError: no such GPU, or a figure that nothing can be reckoned with.
    """
    if name is None:
        return Named(Machine(**given), UNNAMED)  # type: ignore[arg-type]
    if (found := find_name(name)) == CPU:
        return _this_cpu(given, max(1, processes), config)
    sheet = DEVICES[found]
    figures = {
        "flops": PRODUCTS * sheet.flops,
        "memory_bandwidth": MEMORY * sheet.memory_bandwidth,
        "node_bandwidth": LINKS * sheet.node_bandwidth,
    }
    note = (
        f"{found}: of its data sheet {PRODUCTS:g} of {sheet.flops / 1e12:,.0f} TFLOP/s, {MEMORY:g} of "
        f"{sheet.memory_bandwidth / 1e12:.3g} TB/s and {LINKS:g} of {sheet.node_bandwidth / 1e9:.0f} GB/s are assumed"
        f"{' where no figure is given' if given else ''}."
    )
    return Named(Machine(**{**figures, **given}), sheet.memory, note)  # type: ignore[arg-type]


def _this_cpu(given: Mapping[str, float], processes: int, config: RunConfig | None) -> Named:
    import torch

    from pretrain.precision import widen_products

    widen_products(torch.device("cpu"))  # as a run here would
    threads, before = max(1, cores() // processes), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        what, flops = _large_products() if config is None else _one_layer(config)
        source, target = (torch.zeros(1 << 24, dtype=torch.uint8) for _ in range(2))
        copied = 2 * source.numel() / _quickest(lambda: target.copy_(source)) / processes
    finally:
        torch.set_num_threads(before)
    figures = {
        "flops": flops, "memory_bandwidth": copied, "node_bandwidth": copied / 2, "host_memory_bandwidth": copied,
        "gpus_per_node": processes, "overlap": 0.0,
    }  # fmt: skip
    share = "one process" if processes == 1 else f"each of {processes} processes"
    note = (
        f"This CPU: {what} and copies, measured just now on {threads} thread{'s' if threads > 1 else ''} for {share}; "
        "the engine's own work comes on top."
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
    return Named(Machine(**{**figures, **given}), memory, note, is_cpu=True)  # type: ignore[arg-type]


def _large_products() -> tuple[str, float]:
    """What is measured where no run is known, and its FLOP/s."""
    import torch

    one = torch.randn(768, 768, dtype=torch.bfloat16)
    return "bf16 products of 768 x 768 x 768", 2 * 768**3 / _quickest(lambda: one @ one)


def _one_layer(config: RunConfig) -> tuple[str, float]:
    """The same of a run: forward and backward pass of one of its decoder layers, dense."""
    import torch

    from pretrain.models.parts import DENSE
    from pretrain.precision import DTYPES

    alone = replace(config, parallel=replace(config.parallel, tensor=1, pipeline=1, sequence=False))
    number, block = next((n, block) for n, block in enumerate(blocks_of(alone)) if block.is_layer)
    each = 3 * layer_flops(alone, block)
    length = config.data.seq_length
    rows = max(1, min(config.train.micro_batch_size, int(LAYER_FLOPS / (each * length))))
    precision = config.train.precision
    dtype = DTYPES[precision]
    _, make = family_of(config.model).model.blocks(config.model, DENSE, False)[number]
    layer = make().to(dtype)
    inputs = torch.randn(rows, length, inventory_of(config.model).shape.width, dtype=dtype, requires_grad=True)
    seconds = _quickest(lambda: layer(inputs, None).sum().backward())
    what = f"one decoder layer on {rows} x {length} tokens in {precision}, forward and backward,"
    return what, each * rows * length / seconds


def _quickest(act: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after one that counts for nothing."""
    act()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while best == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - begin)
    return best
