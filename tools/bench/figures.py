"""The figures of the benchmark and their thresholds: the one place where these are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one figure says, and how large it may be (or, with ``at_least``, how small)."""

    title: str
    unit: str = "ratio"
    threshold: float | None = None
    at_least: bool = False


GPU = "not measured without CUDA"

SPECS: dict[str, Spec] = {
    "step_time": Spec(title="step time, SMET / dense, default residency", threshold=0.92),
    "step_time_dense_residency": Spec(title="step time, SMET / dense, weight_residency dense", threshold=0.88),
    "step_cpu_time": Spec(title="CPU time of a step, SMET / dense, default residency"),
    "bytes_sent": Spec(title="bytes sent per step for the sparse layers, SMET / dense", threshold=0.34),
    "bytes_sent_replicated": Spec(title="the same with mask_residency replicated", threshold=0.28),
    "bytes_sent_whole_model": Spec(title="bytes sent per step for the whole model, SMET / dense"),
    "bytes_at_rest": Spec(title="bytes at rest of sparse layers, SMET / dense", threshold=0.28),
    "peak_memory_dense": Spec(title="peak resident memory of the fullest process, dense", unit="MB"),
    "peak_memory": Spec(title="peak resident memory of the fullest process, SMET", unit="MB"),
    "optimizer_step": Spec(title="optimizer step over the sparse layers, SMET / dense fused", threshold=0.35),
    "expand_compress": Spec(
        title="two expands and a compress of a layer / its three products at 2,048 tokens", threshold=0.05
    ),
    "topology_update": Spec(title="one topology update / one training step", threshold=1.0),
    "checkpoint_step": Spec(title="step that starts an asynchronous save / normal step", threshold=1.25),
    "dense_step_seconds": Spec(title="dense step", unit="s"),
    "dense_optimizer": Spec(title="dense step with DeepSpeedCPUAdam / with torch's fused AdamW"),
    "quickstart_throughput": Spec(title="throughput of the quickstart run, SMET / dense run"),
    "gpu_expand": Spec(title="expand, fraction of measured copy bandwidth", threshold=0.7, at_least=True),
    "gpu_compress": Spec(title="compress, fraction of measured copy bandwidth", threshold=0.7, at_least=True),
    "gpu_adam": Spec(title="Adam, fraction of measured copy bandwidth", threshold=0.7, at_least=True),
    "gpu_step_350m": Spec(title="step time of the 350m model on one GPU, SMET / dense"),
}


PARTS = (
    "forward", "backward", "expand", "compress", "mask gathers", "gradient reduction", "optimizer",
    "weight gathers", "everything else",
)  # fmt: skip
"""What a step's time goes into; see ``breakdown``."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "loss": ("MeanCrossEntropy",),
    "attention": ("scaled_dot_product", "Attended", "ScaledDotProduct"),
    "rotation": ("Rotate",),
    "norms": ("rms_norm", "Normed"),
    "gates": ("silu", "Gated", "Silu"),
    "products": ("aten::mm", "aten::addmm", "_SparseMatmul"),
    "optimizer": ("Optimizer.step",),
}
"""Kinds of operations by parts of their names; see ``operations``."""
REST = "copies, sums and all else"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure. ``value`` is None where it was not measured; ``note`` then says why."""

    name: str
    value: float | None
    spread: tuple[float, float] | None = None
    """First and third quartile."""
    note: str = ""

    @property
    def spec(self) -> Spec:
        """Title, unit and threshold."""
        return SPECS[self.name]

    @property
    def met(self) -> bool | None:
        """Whether the threshold is met; None without a value or a threshold."""
        limit = self.spec.threshold
        if self.value is None or limit is None:
            return None
        return self.value >= limit if self.spec.at_least else self.value <= limit

    def to_json(self) -> dict[str, Any]:
        """Plain data with everything that the registry knows."""
        spread = None if self.spread is None else list(self.spread)
        spec = dataclasses.asdict(self.spec)
        return {"name": self.name, "value": self.value, "spread": spread, "met": self.met, "note": self.note, **spec}


def missed(figures: Sequence[Figure]) -> list[str]:
    """Names of the figures that miss their threshold."""
    return [figure.name for figure in figures if figure.met is False]


def unmeasured(names: Sequence[str], why: str) -> list[Figure]:
    """Figures that this run does not measure."""
    return [Figure(name=name, value=None, note=why) for name in names]
