"""Scaling on paper: the planner's step times for large clusters, dense and SMET side by side."""

from __future__ import annotations

from typing import Any

from pretrain.config import load_config

from ..packages import CONFIGS
from ..planner.timing import slowest_stage
from .options import Options

CASES = (("7b", 64, "7b-64x80gb.yaml"), ("70b", 1024, "70b-1024x80gb.yaml"))


def predict(options: Options) -> list[dict[str, Any]]:
    """Seconds by part, tokens per second, efficiency and peak bytes of each case.

    Efficiency is the products' share of the step: 1 if nothing but products, at the assumed rate, took time.
    """
    rows = []
    for model, gpus, file in CASES:
        config = load_config(CONFIGS / "clusters" / file, [f"sparsity.density={options.density}"])
        tokens = config.train.global_batch_size * config.data.seq_length
        for side, dense in (("dense", True), ("SMET", False)):
            plans, time = slowest_stage(config, gpus, options.machine, dense=dense)
            rows.append(
                {
                    "model": model,
                    "gpus": gpus,
                    "layout": f"tensor {config.parallel.tensor}, pipeline {config.parallel.pipeline}, "
                    f"ZeRO-{config.parallel.zero_stage}, micro-batch {config.train.micro_batch_size}",
                    "side": side,
                    "seconds": {**vars(time), "total": time.total},
                    "tokens_per_second": tokens / time.total,
                    "efficiency": time.products / time.total,
                    "peak_bytes": max(plan.peak for plan in plans),
                    "sent_bytes": max(sum(plan.sent.values()) for plan in plans),
                }
            )
    return rows
