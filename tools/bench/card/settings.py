"""What is measured: sizes of a GPU, or tiny ones that rehearse the whole command on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pretrain.config.load import read_yaml

from ..options import MODELS, Options

Case = tuple[int, int, int, tuple[int, int], float]
"""Outputs, inputs, tokens, tile, density."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One engine of a comparison: dense, or SMET with tiles of ``block`` at ``density``."""

    block: tuple[int, int] | None = None
    density: float = 0.25
    permute: str = "none"
    """Which features are permuted, as ``sparsity.permute`` says it."""
    plain: bool = False
    """Whether norms, gates, rotations and the loss are plain formulas; it is another way to step the engine of the side
    that is like it otherwise, which comes before it."""

    @property
    def title(self) -> str:
        """As in tables."""
        return self._engine + ", plain formulas" * self.plain

    @property
    def _engine(self) -> str:
        if self.block is None:
            return "dense"
        permuted = f", permuted {self.permute}" if self.permute != "none" else ""
        return f"SMET {self.block[0]} x {self.block[1]}, density {self.density:g}{permuted}"


@dataclass(frozen=True, kw_only=True)
class Setting(Options):
    """One model under one ZeRO stage, and the engines that take turns on it."""

    title: str
    shape: dict[str, Any]
    length: int = 1024
    sides: tuple[Side, ...] = ()
    rounds: int = 10
    ranks: int = 1
    warm_up: int = 3
    """Steps of an engine before it is timed."""
    folder: str = ""
    """Where runs that belong together write."""

    @property
    def sequence(self) -> int:
        """See ``Options``."""
        return self.length

    def _model(self) -> object:
        return self.shape


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of the tensors that norms, gates, rotations and the loss are timed with."""

    rows: int
    length: int
    heads: int
    head_dim: int
    inner: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that differs between a measurement and its rehearsal."""

    device: str
    rehearsal: bool
    cases: tuple[Case, ...]
    rounds: int
    calls: int
    """Launches between two readings of the clock."""
    matrix: tuple[int, int]
    elements: int
    """Of the vectors that Adam steps over."""
    shapes: Shapes
    settings: tuple[Setting, ...]
    resumed: Setting


DENSE = Side()
LAYERS = 6
"""Of the 1b-shaped stack."""


def on_a_gpu() -> Sizes:
    """The sizes of docs/performance-gpu.md."""
    return Sizes(
        device="cuda", rehearsal=False, cases=_cases(), rounds=15, calls=4, matrix=(11008, 4096), elements=1 << 26,
        shapes=Shapes(rows=16, length=1024, heads=32, head_dim=64, inner=5504, vocabulary=8000),
        settings=_settings(), resumed=_resumed("cuda", (32, 32), 128, 1024),
    )  # fmt: skip


def on_a_cpu() -> Sizes:
    """Tiny: whether everything runs, not how fast."""
    sides = (DENSE, Side(block=(1, 1)), Side(block=(16, 16), density=0.5), replace(DENSE, plain=True))
    tiny = Setting(
        title="tiny", shape=_tiny(32, 16), length=16, sides=sides,
        rounds=2,
        device="cpu", micro_batch=1, zero_stage=2,
    )  # fmt: skip
    return Sizes(
        device="cpu", rehearsal=True, cases=((64, 32, 40, (16, 16), 0.5), (32, 64, 16, (32, 32), 0.5)), rounds=2,
        calls=1, matrix=(48, 32), elements=3000,
        shapes=Shapes(rows=2, length=8, heads=2, head_dim=16, inner=40, vocabulary=50),
        settings=(tiny,), resumed=_resumed("cpu", (16, 16), 32, 16),
    )  # fmt: skip


def _cases() -> tuple[Case, ...]:
    shapes = ((4096, 4096), (11008, 4096), (2048, 2048))
    found = [
        (out, inputs, tokens, (side, side), density)
        for tokens in (8192, 2048)
        for out, inputs in shapes
        for side in (128, 64, 32)
        for density in (0.25, 0.1, 0.5)
    ]
    odd = [(4096, 4096, 8192, tile, 0.25) for tile in ((64, 128), (128, 64), (32, 128), (16, 16))]
    return (*found, *odd)


def _settings() -> tuple[Setting, ...]:
    stack = read_yaml(MODELS / "1b.yaml")["model"]
    layers = stack["num_hidden_layers"]
    # As many logits for each layer as the whole model has, so that the head takes its real share.
    vocabulary = round(stack["vocab_size"] * LAYERS / layers / 128) * 128
    stack |= {"num_hidden_layers": LAYERS, "vocab_size": vocabulary}
    medium = read_yaml(MODELS / "350m.yaml")["model"] | {"intermediate_size": 2816}  # 22 x 128; 2736 is 171 x 16
    one, tiles = Side(block=(1, 1)), Side(block=(128, 128))
    every = (DENSE, one, tiles, Side(block=(64, 64)), Side(block=(32, 32)), Side(block=(128, 128), density=0.1))
    name = "1b-shaped stack"
    formulas = (replace(DENSE, plain=True), replace(tiles, plain=True))
    made = [
        (name, stack, 2, 16, (*every, *formulas)),
        ("350m", medium, 2, 8, every[:4]),
        (name, stack, 2, 4, every[:3]),
    ]
    made += [(name, stack, stage, 16, every[:3]) for stage in (3, 1)]
    return tuple(
        Setting(title=title, shape=shape, sides=sides, device="cuda", micro_batch=rows, zero_stage=stage)
        for title, shape, stage, rows, sides in made
    )


def _resumed(device: str, block: tuple[int, int], hidden: int, length: int) -> Setting:
    return Setting(
        title="resume", shape=_tiny(hidden, length), length=length, device=device, block=block, density=0.5,
        micro_batch=1, zero_stage=2,
    )  # fmt: skip


def _tiny(hidden: int, length: int = 32) -> dict[str, Any]:
    return {
        "vocab_size": 256, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": length,
    }  # fmt: skip
