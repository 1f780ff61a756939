"""Whole training steps on this CPU: SMET over tiles against the dense model, two ranks of one thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pretrain.config.yaml_text import read_yaml

from .card import training
from .card.settings import DENSE, Setting, Side, on_a_cpu
from .options import MODELS

TILES = (((16, 16), "inputs"), ((32, 32), "both"))
"""Tiles, and how features are permuted so that they are as good as single weights."""
DENSITIES = (0.25, 0.1)
STACKS = {"60m": None, "350m": 8, "1b": 2}
"""Models, and how many of their layers five engines at a time have room for in 16 GB; None: all."""
ROUNDS = 5


def settings(quick: bool) -> Iterator[Setting]:
    """One for each set of engines that take turns: 2,048 tokens per rank, ZeRO-2."""
    if quick:
        yield _tiny()
        return
    for name in STACKS:
        yield _setting(name, DENSITIES)


def more(quick: bool) -> Iterator[Setting]:
    """The rest of the picture: half of the tiles, and other numbers of tokens."""
    if quick:
        yield _tiny()
        return
    for name in STACKS:
        yield _setting(name, (0.5,))
    for sequences in (2, 4, 16):
        yield _setting("60m", (0.25,), sequences)


def _tiny() -> Setting:
    return dataclasses.replace(
        on_a_cpu().settings[0], ranks=2, warm_up=1, sides=(DENSE, Side(block=(16, 16), density=0.5))
    )


def _setting(name: str, densities: Sequence[float], sequences: int = 8) -> Setting:
    tiles = (Side(block=tile, density=d, permute=permute) for d in densities for tile, permute in TILES)
    layers = STACKS[name]
    title = name if layers is None else f"{layers} layers of {name}"
    return Setting(
        title=title, shape=_shape(name, layers), length=256, micro_batch=sequences, sides=(DENSE, *tiles), device="cpu",
        ranks=2, zero_stage=2, rounds=ROUNDS, warm_up=1,
    )  # fmt: skip


def _shape(name: str, layers: int | None) -> dict[str, Any]:
    shape: dict[str, Any] = read_yaml(MODELS / f"{name}.yaml")["model"]
    if name == "350m":
        shape["intermediate_size"] = 2752  # 86 x 32; 2736 is 171 x 16
    if layers is not None:
        # As many logits for each layer as the whole model has, so that the head takes its real share.
        vocabulary = round(shape["vocab_size"] * layers / shape["num_hidden_layers"] / 128) * 128
        shape |= {"num_hidden_layers": layers, "vocab_size": vocabulary}
    return shape


def measure(settings: Iterable[Setting]) -> Iterator[dict[str, Any]]:
    """What ``training.measure`` found for each setting."""
    for setting in settings:
        found = training.measure(setting)
        yield {key: found[key] for key in ("title", "tokens", "dense", "steps", "products", "model")}


def table(results: list[dict[str, Any]]) -> str:
    """Seconds of a step and the ratio to the dense one, by model and engine."""
    lines = [
        "| model | tokens | engine | products by | s / step | SMET / dense | quartiles |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for found in results:
        for name, step in found["steps"].items():
            low, high = step["quartiles"]
            ratio = f"{step['ratio']:.3f} | {low:.3f} to {high:.3f}" if name != found["dense"] else "1 |"
            by = found["products"][name]
            lines.append(
                f"| {found['title']} | {found['tokens']:,} | {name} | {by} | {step['seconds']:.3f} | {ratio} |"
            )
    return "\n".join(lines)
