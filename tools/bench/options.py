"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from pretrain.config import RunConfig, config_from_dict
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import ConfigError, LaunchError, nearest
from pretrain.numbers import finite
from pretrain.paths import path_argument

from ..packages import CONFIGS
from ..planner.timing import Machine

MODELS = CONFIGS / "models"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, on what."""

    model: str = "60m"
    density: float = 0.25
    block: tuple[int, int] = (1, 1)
    ranks: int = 2
    zero_stage: int = 2
    steps: int = 24
    """Timed steps per engine."""
    micro_batch: int = 8
    """Sequences of 256 tokens per rank; 8 make the 2,048 tokens at which a layer's products are timed."""
    device: str = "cpu"
    quick: bool = False
    """A tiny model and few steps: whether everything runs, not how fast."""
    machine: Machine = Machine()
    """What the predicted step times assume."""

    @property
    def sequence(self) -> int:
        """Tokens that one sequence predicts."""
        return 32 if self.quick else 256

    def config(self, output: Path, corpus: str = "none", **sparsity: object) -> RunConfig:
        """The run file of a SMET run of this model; topology updates only happen when they are called for.

        Raises:
            ConfigError: an unknown model, or settings that do not fit it.
        """
        return config_from_dict(
            {
                "model": self._model(),
                "sparsity": {
                    "density": self.density, "block": list(self.block), "update_interval": 1 << 20, **sparsity,
                },
                "data": {"train": [{"path": corpus}], "seq_length": self.sequence},
                "optimizer": {"lr": 1e-3},
                "train": {
                    "steps": 1 << 24,
                    "global_batch_size": self.micro_batch * self.ranks,
                    "micro_batch_size": self.micro_batch,
                    "precision": "bf16",
                    "output_dir": str(output),
                    "device": self.device,
                },
                "parallel": {"zero_stage": self.zero_stage},
            }
        )  # fmt: skip

    def _model(self) -> object:
        if self.quick:
            return {
                "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                "num_attention_heads": 2, "max_position_embeddings": 64,
            }  # fmt: skip
        known = sorted(path.stem for path in MODELS.glob("*.yaml"))
        if self.model not in known:
            raise ConfigError(
                f"--model is '{self.model}', expected one of {', '.join(known)}{nearest(self.model, known)}"
            )
        return read_yaml(MODELS / f"{self.model}.yaml")["model"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a measuring run."""
    parser.add_argument("--model", default="60m", help="name of a file in configs/models; default 60m")
    parser.add_argument("--density", type=finite, default=0.25, help="active fraction; default 0.25")
    parser.add_argument("--block", default="1", help="block size, such as 1, 16 (1 x 16) or 4x4; default 1")
    parser.add_argument("--ranks", type=int, default=2, help="data-parallel processes of one thread; default 2")
    parser.add_argument("--zero-stage", type=int, default=2, help="ZeRO stage of both sides; default 2")
    parser.add_argument("--steps", type=int, default=24, help="timed steps per engine; default 24")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences of 256 tokens per rank; default 8")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    parser.add_argument("--quick", action="store_true", help="tiny model, few steps: does it run, not how fast")
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="write every figure to FILE")
    for option in fields(Machine):
        flag = "--" + option.name.replace("_", "-")
        parser.add_argument(
            flag, type=type(option.default), default=option.default,
            help=f"of a GPU, for the predicted step times; default {option.default:g}",
        )  # fmt: skip


def options_of(given: argparse.Namespace) -> Options:
    """Checked options.

    Raises:
        ConfigError: a value that cannot be measured with.
        LaunchError: no such device, or no room for the result.
    """
    for name in ("ranks", "steps", "micro_batch"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(given, name)}, expected 1 or more")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if given.device == "cuda" and gpus < given.ranks:
        raise LaunchError(f"--device cuda with --ranks {given.ranks} needs as many GPUs, this machine has {gpus}")
    if given.json is not None and not os.access(given.json.absolute().parent, os.W_OK):
        raise LaunchError(f"--json {given.json}: its folder does not exist or cannot be written; create it first")
    options = Options(
        model=given.model, density=given.density, block=_block(given.block), ranks=given.ranks,
        zero_stage=given.zero_stage, steps=2 if given.quick else given.steps,
        micro_batch=2 if given.quick else given.micro_batch, device=given.device, quick=given.quick,
        machine=Machine(**{option.name: getattr(given, option.name) for option in fields(Machine)}),
    )  # fmt: skip
    options.config(Path("unused"))
    return options


def _block(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--block is '{text}', expected a size such as 16 (1 x 16) or 4x4")
    rows, cols = (1, int(parts[0])) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    return rows, cols
